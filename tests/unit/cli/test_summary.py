from __future__ import annotations

from pathlib import Path

import pytest
from rich.text import Text

from provision.cli.summary import summary
from provision.converge import Change, Failure, HostResult, Result
from provision.converge.result import Answer, Difference
from provision.inventory import Replica

INVENTORY = Path("inventory/prod")


@pytest.fixture
def told(tmp_path):
    log = tmp_path / "ansible.log"
    log.write_text("x")

    def told(*hosts: HostResult, full: bool = False, **fields) -> list[str]:
        result = Result(
            "id",
            tmp_path,
            log,
            hosts={host.name: host for host in hosts},
            **{"check": False, "seconds": 1.23, **fields},
        )

        class Fleet:
            sources = (INVENTORY,)
            lab = False
            replicas = (Replica("a", hosts),)

        text = "\n".join(summary(result, Fleet(), INVENTORY, full))
        return [line.rstrip() for line in Text.from_markup(text).plain.splitlines()]

    return told


def changed(name: str, *changes: Change) -> HostResult:
    return HostResult(name, changes=list(changes))


SYSCTL = Change("host", "Set kernel tunables", ("Set vm.swappiness to 10 (was 60).",), ())
FILE = Change("ray", "Write", (), (Difference("/etc/x", "a", "b"), Difference("/etc/y", "1\n2\n3\n", "1\n2\n4\n5\n")))


def test_nothing_to_do_is_one_line(told):
    assert told(HostResult("n1"), HostResult("n2")) == ["2 hosts verified in 1.2 s: nothing to change."]


def test_what_stays_out_of_rotation_is_said(told):
    said = told(HostResult("n1", stays_out="run 6"), HostResult("n2"))
    assert said == [
        "a stays out of rotation: run 6 drained it, and not all of it stands.",
        "  To bring it back:  provision bootstrap inventory/prod",
        "2 hosts verified in 1.2 s: nothing to change.",
    ]


def test_who_answers(told):
    said = told(HostResult("n1", answer=Answer(8, 412)), HostResult("n2"))
    assert said == ["2 hosts verified in 1.2 s: nothing to change. a answers (8 tokens in 412 ms)."]


def test_hosts_with_the_same_changes_stand_together(told):
    assert told(changed("n1", SYSCTL), changed("n2", SYSCTL), changed("n3", FILE), seconds=83) == [
        "n1, n2",
        "  host        Set vm.swappiness to 10 (was 60).",
        "",
        "n3",
        "  ray         /etc/x  a → b",
        "              /etc/y  +2 -1 lines",
        "",
        "3 hosts: 4 changes made, in 1 min 23 s.",
    ]


def test_what_hosts_have_in_common_stands_once(told):
    own = Change("swap", "x", ("Made a swap file of 96 MiB.",), ())
    assert told(changed("n1", SYSCTL), changed("n2", own, SYSCTL))[:5] == [
        "n1, n2",
        "  host        Set vm.swappiness to 10 (was 60).",
        "",
        "n2",
        "  swap        Made a swap file of 96 MiB.",
    ]
    assert told(*(changed(f"n{n}", SYSCTL) for n in range(9)))[0] == "all 9 hosts"
    assert told(HostResult("n0"), *(changed(f"n{n}", SYSCTL) for n in range(1, 9)))[0] == "n1, n2, n3 and 5 more"


def test_diff_shows_what_changed_in_files(told):
    assert {"                -3", "                +4"} <= set(told(changed("n3", FILE), full=True))


def test_a_long_stage_is_cut_short(told):
    many = Change("host", "x", tuple(f"Did {n}." for n in range(20)), ())
    lines = told(changed("n1", many))
    assert len(lines) == 11
    assert lines[8] == "              and 13 more"
    assert len(told(changed("n1", many), full=True)) == 23


def test_check_mode_says_that_nothing_was_done(told):
    assert told(changed("n1", SYSCTL), check=True)[-2:] == [
        "1 host: 1 change pending, nothing was done, in 1.2 s.",
        "Apply them:  provision bootstrap inventory/prod",
    ]


def test_failures_say_what_and_what_next(told, tmp_path):
    refused = HostResult("n1", failure=Failure("reach", "changed_key", "its SSH host key has changed.", "Do this."))
    broken = HostResult("n2", failure=Failure("driver", "Install the driver", "[E] No such version.\nline 2"))
    spared = HostResult("n3", held_back=("ray", "vllm"), because="n2")
    assert told(refused, broken, spared) == [
        "n1: its SSH host key has changed.",
        "  Do this.",
        "n2: driver: Install the driver: [E] No such version.",
        "  line 2",
        "n3: ray, vllm not run, since n2 of the same replica failed.",
        "3 hosts: nothing changed, 2 failed, 1 held back, in 1.2 s.",
        f"Log: {tmp_path}/ansible.log",
    ]


def test_an_interrupt_says_where_it_stands(told):
    lines = told(HostResult("n1"), interrupted=True, running={"n1": ("driver", "Install the driver")})
    assert lines[:4] == [
        "Interrupted after 1.2 s.",
        "  n1 was in driver: Install the driver",
        "  What had started on a host runs to its end there; the next run waits for it.",
        "  Go on where it stands:  provision resume",
    ]


def test_hosts_of_later_waves_are_said_to_be_as_they_were(told):
    broken = HostResult("n1", failure=Failure("driver", "Install the driver", "No such version."))
    lines = told(broken, HostResult("n2", spared="n1"), HostResult("n3", spared="n1"))
    assert lines[1] == "n2, n3: not touched, since n1 failed in an earlier wave."
    assert lines[2:4] == [
        "  Go on, once it is mended:  provision bootstrap inventory/prod",
        "  Back to what it served:    provision serve rollback inventory/prod a",
    ]


def test_a_reboot_that_the_plan_did_not_name(told):
    why = ("libc6 asked for it (/run/reboot-required)",)
    said = told(HostResult("n1", waits=why), HostResult("n2", waits=why), changed("n3", SYSCTL))
    assert "n1, n2: a reboot waits that the plan did not name: libc6 asked for it (/run/reboot-required)." in said
    assert "  The next plan names it:  provision plan inventory/prod" in said
