"""`provision drift`: what it shows, what it means for a script, and what it repairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from provision.cli import drift as command
from provision.cli.drift_screen import sentences
from provision.converge import STAGES
from provision.drift import Busy, Finding, HostReceipts, StageReceipt
from provision.drift.look import HostLook
from provision.errors import LockedError
from provision.ssh.trouble import Trouble

WHO = "by uid 1000 (alice) with `sysctl -w vm.swappiness=60`, 2 h ago"
GONE = Trouble("timeout", "10.0.0.2 did not answer within 10 s.", "Is it up?  ping 10.0.0.2", unreachable=True)
STANDING = {stage: StageReceipt(stage, {}, "2026-11-22T06:00:00Z") for stage in STAGES}


def finding(effect: str = "none", **changes: str) -> Finding:
    fields = {"stage": "host", "module": "kernel_tunables", "action": "Set vm.swappiness to 1 (it was 60)."}
    fields |= {"resource": "vm.swappiness", "before": "60\n", "after": "1\n", "effect": effect, "who": WHO}
    return Finding(**{**fields, **changes})


def host(name: str = "a", *findings: Finding, **more: object) -> HostLook:
    stages = {**STANDING, "host": StageReceipt("host", {}, "now", findings)}
    return HostLook(HostReceipts(name, stages=stages), **more)


GOOD, DRIFTED = host(), host("a", finding())
LOST = HostLook(HostReceipts("b", trouble=GONE))
BARE = HostLook(HostReceipts("a"), STAGES)


@pytest.fixture
def drift(monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """The command, where one look after the other finds these hosts; `healed` are the runs that it made."""

    def call(*arguments: str, looks: Sequence[Sequence[HostLook]], locked: bool = False) -> SimpleNamespace:
        waiting, healed = iter(looks), []

        def bootstrap(_fleet: object, **asked: object) -> None:
            if locked:
                raise LockedError("Another run holds it.")
            healed.append((asked["limit"], asked["stages"]))

        def look(_fleet: object, _hosts: object) -> list[HostLook]:
            try:
                return list(next(waiting))
            except StopIteration:
                raise KeyboardInterrupt from None

        proxied = SimpleNamespace(variables={"site_http_proxy": "http://bob:s3cret-1@proxy"}, defaults={})
        fleet = SimpleNamespace(replicas=(), path=Path("inventory/prod"), hosts={"a": proxied}, groups={})
        monkeypatch.setattr(command, "load", lambda _inventory, _lab: fleet)
        monkeypatch.setattr(command, "select", lambda _fleet, _limit: ())
        monkeypatch.setattr(command, "look", look)
        monkeypatch.setattr(command, "bootstrap", bootstrap)
        monkeypatch.setattr(command.time, "sleep", lambda _seconds: None)
        done = CliRunner().invoke(command.drift, ["inventory/prod", *arguments], standalone_mode=False)
        return SimpleNamespace(code=done.return_value, out=done.stdout, err=done.exception, healed=healed)

    return call


def test_nothing_differs(drift) -> None:
    done = drift(looks=[[GOOD]])
    assert done.code == 0
    assert "1 host verified in 0.0 s: nothing differs from what the last bootstrap left." in done.out


def test_what_differs_who_did_it_and_what_to_type(drift) -> None:
    done = drift(
        looks=[[DRIFTED, host("c", finding("restart", resource="vllm.service", before="a\nb\n", after="c\n"))]]
    )
    assert done.code == 2
    assert "host        none      vm.swappiness is 60, should be 1." in done.out
    assert WHO in done.out
    assert "vllm.service differs: 1 line missing, 2 lines not ours." in done.out
    assert "2 things to repair: 1 unnoticed, 1 by a restart." in done.out
    assert "provision drift inventory/prod --heal" in done.out
    assert "provision bootstrap inventory/prod" in done.out


@pytest.mark.parametrize(
    ("looks", "code"),
    [
        ([GOOD, LOST], 3),
        ([DRIFTED, LOST], 2),
        ([BARE], 2),
        ([HostLook(HostReceipts("a", stages=STANDING), missing=("vllm",))], 2),
        ([HostLook(HostReceipts("a", trouble=Trouble("no_sudo", "No.", "Allow it.")))], 1),
        ([HostLook(HostReceipts("a", stages={**STANDING, "gpu": StageReceipt("gpu", {}, "", error="No GPU.")}))], 1),
    ],
)
def test_exit_codes(drift, looks, code) -> None:
    assert drift(looks=[looks]).code == code


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_password_of_a_file_that_drifted_is_not_shown(drift, arguments) -> None:
    proxy = finding(resource="http_proxy", before="http://bob:s3cret-1@proxy\n", after="")
    done = drift(*arguments, looks=[[host("a", replace(proxy, who="by uid 0 with `export x=s3cret-1`"))]])
    assert "http_proxy" in done.out
    assert "s3cret-1" not in done.out


def test_a_bare_host_and_one_that_is_gone(drift) -> None:
    done = drift(looks=[[BARE, LOST]])
    assert "a: never bootstrapped, so nothing is proved there." in done.out
    assert "provision bootstrap inventory/prod --limit a" in done.out
    assert "b: 10.0.0.2 did not answer within 10 s." in done.out


def test_a_host_at_work(drift) -> None:
    busy = HostLook(HostReceipts("a", stages=STANDING, busy=Busy(12, "module apt_packages", "2026-11-22T06:00:00Z")))
    assert (
        "process 12 has been changing it since 2026-11-22T06:00:00Z: module apt_packages" in drift(looks=[[busy]]).out
    )


def test_a_changed_inventory_is_told_in_one_line(drift) -> None:
    done = drift(looks=[[host("a", outdated={"host": ("host_sysctls", "code"), "gpu": ("code",)})]])
    assert done.code == 0
    assert (
        "The inventory changed since (host_sysctls): provision plan inventory/prod shows what that means." in done.out
    )
    assert "provision itself changed since" in drift(looks=[[host("a", outdated={"gpu": ("code",)})]]).out


def test_healing_repairs_what_nobody_notices_and_says_what_it_left(drift) -> None:
    deep = host("c", finding("reboot"))
    done = drift("--heal", looks=[[DRIFTED, deep], [GOOD, deep]])
    assert done.healed == [("a", ("host",))]
    assert "Healed a: host." in done.out
    assert "Left alone c: host, since to repair it takes a reboot." in done.out
    assert done.code == 2


def test_healing_that_did_not_help(drift) -> None:
    done = drift("--heal", looks=[[DRIFTED], [DRIFTED]])
    assert "Not healed a: host still differs." in done.out
    assert done.code == 2


def test_nothing_to_heal(drift) -> None:
    done = drift("--heal", looks=[[GOOD]])
    assert (done.code, done.healed) == (0, [])
    assert "There is nothing to heal." in done.out


def test_a_rehearsal_goes_on_as_one(drift) -> None:
    assert "provision bootstrap inventory/prod --lab" in drift("--lab", looks=[[DRIFTED]]).out


def test_watching_prints_what_changed_and_ends_at_ctrl_c(drift) -> None:
    gone = HostLook(HostReceipts("a", trouble=GONE))
    done = drift("--watch", "5", looks=[[GOOD], [GOOD], [DRIFTED], [DRIFTED], [gone], [DRIFTED], [GOOD]])
    lines = [line.partition(" ")[2] for line in done.out.splitlines()[1:]]
    assert lines == [
        f"a: vm.swappiness is 60, should be 1. {WHO} (repair: none)",
        "a: 10.0.0.2 did not answer within 10 s.",
        f"a: vm.swappiness is 60, should be 1. {WHO} (repair: none)",
        "a: it answers again.",
        "a: vm.swappiness is as it should be again.",
    ]
    assert done.code is None


def test_watching_and_healing_outlasts_another_run(drift) -> None:
    assert isinstance(drift("--watch", "5", "--heal", looks=[[DRIFTED]], locked=True).err, LockedError)
    done = drift("--watch", "5", "--heal", looks=[[GOOD], [DRIFTED], [DRIFTED], [GOOD]], locked=True)
    assert not isinstance(done.err, LockedError)
    assert "a: vm.swappiness is as it should be again." in done.out


def test_json(drift) -> None:
    told = json.loads(drift("--json", looks=[[DRIFTED, LOST]]).out)
    assert (told["version"], told["stands"]) == (1, False)
    first, second = told["hosts"]
    assert (first["name"], first["reachable"], first["stands"]) == ("a", True, False)
    (stage,) = [one for one in first["stages"] if not one["stands"]]
    assert stage["findings"][0]["who"] == WHO
    assert (second["reachable"], second["error"], second["stages"]) == (False, GONE.message, [])
    healed = json.loads(drift("--json", "--heal", looks=[[DRIFTED], [GOOD]]).out)
    assert (healed["healed"], healed["left_alone"], healed["stands"]) == ({"a": ["host"]}, [], True)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("a\nb: 1\nc\n", "b: 1\na\nc\n", ["x differs: the order of its lines."]),
        ("", "text\n", ["x is missing."]),
        ("text\n", "", ["x should not be there."]),
        ("mode: 0600\n", "mode: 0644\n", ["x: mode is 0600, should be 0644."]),
        ("GPU 0: a\nGPU 1: a\nGPU 2: b\n", "GPU 0: c\nGPU 1: c\nGPU 2: b\n", ["x: GPU 0, 1 is a, should be c."]),
        ("a: 1\nb: 2\n", "a: 2\nb: 3\n", ["x: a is 1, should be 2.", "b is 2, should be 3."]),
    ],
)
def test_how_a_difference_is_told(before, after, said) -> None:
    assert sentences(finding(resource="x", before=before, after=after)) == said


def test_a_step_without_a_resource_is_told_as_what_is_to_be_done() -> None:
    assert sentences(finding(resource="", action="Had systemd read its units again.")) == [
        "To be done: Had systemd read its units again."
    ]
