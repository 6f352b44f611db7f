"""What a look at a fleet finds, and which of it may be healed."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.converge import STAGES
from provision.drift import Busy, Finding, HostReceipts, StageReceipt
from provision.drift.look import HostLook, healable, look, together
from provision.inventory import Fleet, Host, Replica
from provision.ssh.trouble import Trouble
from provision.stack import load_stack

HOST = Host("a", "10.0.0.1", "ops", None, None, (), {}, ())
FLEET = Fleet(Path("inventory"), (), {"a": HOST}, {}, (Replica("r", (HOST,)),), load_stack(Path("none")), False)
GONE = Trouble("timeout", "10.0.0.1 did not answer within 10 s.", "Is it up?", unreachable=True)


def finding(effect: str = "none", stage: str = "host") -> Finding:
    return Finding(stage, "kernel_tunables", "Set x to 1.", "x", "2\n", "1\n", effect, None)


def receipt(stage: str = "host", *effects: str, **more: object) -> StageReceipt:
    return StageReceipt(stage, {"code": "01"}, "now", tuple(finding(effect, stage) for effect in effects), **more)


def told(*receipts: StageReceipt, **more: object) -> HostReceipts:
    return HostReceipts("a", stages={one.stage: one for one in receipts}, **more)


@pytest.fixture
def looked(monkeypatch: pytest.MonkeyPatch):
    """A look at one host that told this, where these inputs are wanted."""

    def see(receipts: HostReceipts, **wanted: dict[str, str]) -> HostLook:
        inputs = {"a": {stage: {"code": "01"} | wanted.get(stage, {}) for stage in STAGES}}
        monkeypatch.setattr("provision.drift.look.inputs_of", lambda _fleet: inputs)
        monkeypatch.setattr("provision.drift.look.verify", lambda _hosts, stages: [receipts])
        (host,) = look(FLEET, [HOST])
        return host

    return see


def test_all_stands(looked) -> None:
    host = looked(told(*map(receipt, STAGES)))
    assert (host.stands, host.failed, host.missing, host.changed_inputs) == (True, False, (), ())


def test_a_stage_without_a_receipt_proves_nothing(looked) -> None:
    host = looked(told(*map(receipt, STAGES[:-1])))
    assert (host.stands, host.missing) == (False, (STAGES[-1],))


def test_other_inputs_are_no_drift_and_are_told(looked) -> None:
    host = looked(told(*map(receipt, STAGES)), host={"host_sysctls": "02"}, gpu={"code": "09"})
    assert host.stands
    assert set(host.changed_inputs) == {"host_sysctls", "code"}


def test_a_receipt_that_nobody_can_read_is_an_error_not_another_input(looked) -> None:
    broken = StageReceipt("host", {}, "now", error="It cannot be read.")
    host = looked(told(broken, *map(receipt, [stage for stage in STAGES if stage != "host"])))
    assert (host.stands, host.failed, host.changed_inputs) == (False, True, ())


def test_a_host_that_is_gone_and_one_that_refuses(looked) -> None:
    assert (looked(told(trouble=GONE)).unreachable, looked(told(trouble=GONE)).failed) == (True, False)
    refused = looked(told(trouble=Trouble("no_sudo", "No.", "Allow it.")))
    assert (refused.unreachable, refused.failed, refused.stands) == (False, True, False)


@pytest.mark.parametrize(
    ("one", "outdated", "busy", "why"),
    [
        (receipt("host", "none", "reload"), {}, None, ""),
        (receipt("host", "none", "restart"), {}, None, "takes a restart"),
        (receipt("gpu", "gpu_reset"), {}, None, "takes a reset of the GPU"),
        (receipt("driver", "reboot"), {}, None, "takes a reboot"),
        (receipt("host", "none", error="It hangs."), {}, None, "could not be verified"),
        (receipt("host", "none", facts=("sha256",)), {}, None, "sha256 differs"),
        (receipt("host", "none"), {"host": ("host_sysctls",)}, None, "host_sysctls changed"),
        (receipt("host", "none"), {"host": ("code",)}, None, "provision itself changed"),
        (receipt("host", "none"), {"gpu": ("x",)}, None, ""),
        (receipt("host", "none"), {}, Busy(7, "x", "now"), "process 7 is changing"),
    ],
)
def test_what_is_healed_and_what_is_left_alone(one, outdated, busy, why) -> None:
    stages, spared = healable([HostLook(told(one, busy=busy), (), outdated)])
    assert bool(stages) == (not why)
    assert [item.stage for item in spared] == ([one.stage] if why else [])
    assert all(why in item.why for item in spared)


def test_stages_that_stand_are_not_touched() -> None:
    stages, spared = healable([HostLook(told(receipt("swap"), receipt("host", "none")))])
    assert (stages, spared) == ({"a": ("host",)}, [])


def test_hosts_with_the_same_drift_take_one_run() -> None:
    groups = list(together({"a": ("host",), "b": ("host", "gpu"), "c": ("host",)}))
    assert groups == [(("a", "c"), ("host",)), (("b",), ("host", "gpu"))]
