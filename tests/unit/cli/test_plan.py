"""`provision plan` and `provision apply` as a user sees them: the screen, the file, the exit codes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.text import Text

from provision import exits
from provision.cli.apply import apply
from provision.cli.plan import plan as plan_command
from provision.cli.plan_screen import screen
from provision.converge import HostResult, Result
from provision.converge.result import Failure
from provision.errors import PlanMovedError
from provision.inventory import Fleet, Host, Replica
from provision.plan.apply import Applied
from provision.plan.document import read, write
from provision.plan.make import Planning
from provision.plan.model import FORMAT, KIND, Capacity, Options, Plan, PlannedChange, PlannedVisit, Reason, Wave
from provision.ssh.trouble import Trouble

STACK = Reason("inputs", "stack.driver changed (stack.lock.yml:2)")
DRIFT = Reason("drift", "drifted: set by hand (uid 1000)")


def change(
    resource: str, before: str, after: str, effect: str = "none", reason: Reason = STACK, action: str = "Did."
) -> PlannedChange:
    return PlannedChange("driver", "Converge", action, resource, before, after, effect, reason)


DRIVER = change("nvidia-driver", "580.95.05", "580.126.20", "reboot")
FABRIC = change("fabric manager", "580.95.05", "580.126.20", "restart")
SWAPPINESS = change("vm.swappiness", "60", "1", reason=DRIFT)
FILE = change("/etc/x", "a\nb\n", "a\nc\n", action="Rewrote /etc/x.")


def host(name: str) -> Host:
    return Host(name, name, None, None, None, (), {}, ())


def fleet_of(**replicas: str) -> Fleet:
    made = tuple(Replica(name, tuple(host(member) for member in members.split())) for name, members in replicas.items())
    hosts = {member.name: member for replica in made for member in replica.hosts}
    stack = SimpleNamespace(path=Path("stack.lock.yml"))
    return Fleet(Path("inventory"), (Path("/inventory"),), hosts, {}, made, stack, False)


FLEET = fleet_of(r_a="n1 n2", r_b="n3")


def planning_of(
    fleet: Fleet = FLEET, changes: dict[str, tuple[PlannedChange, ...]] | None = None, **fields: object
) -> Planning:
    changes = changes or {}
    names = tuple(fleet.hosts)
    replicas = tuple(replica.name for replica in fleet.replicas)
    visits = {name: (PlannedVisit("driver", "inputs", "stack.driver changed"),) for name in changes}
    waves = (Wave(tuple(changes), (), Capacity(replicas, 1000), None),) if changes else ()
    plan = Plan(
        KIND, FORMAT, "2026-11-22T06:00:00.000Z", "0.3.0", "/inventory", Options(), names, {name: {} for name in names},
        visits, changes, replicas, (), Capacity(replicas, 1000 * len(replicas)), waves,
    )  # fmt: skip
    standing = SimpleNamespace(receipts={name: SimpleNamespace(trouble=None) for name in names})
    return Planning(replace(plan, **fields), standing, None)


def shown(planning: Planning, fleet: Fleet = FLEET, full: bool = False) -> list[str]:
    text = "\n".join(screen(planning, fleet, seconds=1.23, full=full))
    return [line.rstrip() for line in Text.from_markup(text).plain.splitlines()]


def test_nothing_to_do_is_one_line():
    assert shown(planning_of()) == ["3 hosts verified in 1.2 s: nothing to change."]


def test_a_visit_that_changes_nothing_is_told():
    visits = {"n1": (PlannedVisit("swap", "inputs", "swap_size changed", ("swap_size",)),)}
    assert shown(planning_of(visits=visits)) == [
        "3 hosts verified in 1.2 s: nothing to change. A run would look again at swap on n1."
    ]


def test_a_replica_that_leaves_rotation():
    waves = (Wave(("n1", "n2"), ("r_a",), Capacity(("r_b",), 1152000), 840.0),)
    clocks = change(
        "gpu 3 clocks", "1980", "1830 MHz", reason=Reason("inputs", "gpu_locked_clocks changed (host_vars/n2.yml:1)")
    )
    planning = planning_of(changes={"n1": (SWAPPINESS, FABRIC, DRIVER), "n2": (DRIVER, FABRIC, clocks)}, waves=waves)
    assert shown(planning) == [
        "r_a   out of rotation once (wave 1 of 1) · about 14 min · capacity meanwhile 1 of 2 replicas (KV memory: 1,152,000 tokens)",
        "  n1  reboot    nvidia-driver   580.95.05 → 580.126.20  stack.driver changed (stack.lock.yml:2)",
        "      restart   fabric manager  580.95.05 → 580.126.20",
        "      -         vm.swappiness   60 → 1                  drifted: set by hand (uid 1000)",
        "  n2  reboot    nvidia-driver, fabric manager           as above",
        "      -         gpu 3 clocks    1980 → 1830 MHz         gpu_locked_clocks changed (host_vars/n2.yml:1)",
        "r_b   nothing to do",
        "2 hosts change · 2 reboots · 1 wave · never fewer than 1 of 2 replicas (KV memory: 1,152,000 tokens) · about 14 min",
    ]


def test_a_replica_that_is_drained_for_a_mere_look():
    visits = {"n1": (PlannedVisit("gpu", "code", "its code changed"),)}
    waves = (Wave(("n1", "n2"), ("r_a",), Capacity(("r_b",), 1000), None),)
    assert shown(planning_of(visits=visits, waves=waves)) == [
        "3 hosts verified in 1.2 s: nothing to change. A run would look again at gpu on n1; r_a would leave rotation for it."
    ]
    visits["n3"] = (PlannedVisit("host", "drift", "vm.swappiness drifted"),)
    assert shown(planning_of(changes={"n3": (SWAPPINESS,)}, visits=visits, waves=waves))[0] == (
        "r_a   nothing would change · out of rotation once (wave 1 of 1) · "
        "capacity meanwhile 1 of 2 replicas (KV memory: 1,000 tokens)"
    )


def test_replicas_alike_stand_together():
    fleet = fleet_of(**{f"r{number}": f"h{number}" for number in range(9)})
    waves = tuple(
        Wave((f"h{n}",), (f"r{n}",), Capacity(tuple(f"r{m}" for m in range(9) if m != n), None), 30.0) for n in range(9)
    )
    planning = planning_of(fleet, {f"h{n}": (DRIVER,) for n in range(9)}, waves=waves)
    assert shown(planning, fleet) == [
        "r0, r1, r2 and 6 more   out of rotation once (waves 1 to 9, one after another of 9) · about 30 s · "
        "capacity meanwhile 8 of 9 replicas (KV memory: unknown)",
        "  h0, h1, h2 and 6 more  reboot    nvidia-driver  580.95.05 → 580.126.20  stack.driver changed (stack.lock.yml:2)",
        "9 hosts change · 9 reboots · 9 waves · never fewer than 8 of 9 replicas (KV memory: unknown) · about 4 min",
    ]


def test_nobody_serves_and_no_run_to_go_by():
    planning = planning_of(
        changes={"n3": (FILE,)}, now=Capacity((), 0), waves=(Wave(("n3",), (), Capacity((), 0), None),)
    )
    assert shown(planning) == [
        "r_a   nothing to do",
        "r_b   not in rotation now",
        "  n3  -         Rewrote /etc/x.  +1 -1 lines  stack.driver changed (stack.lock.yml:2)",
        "1 host changes · 1 wave · no replica serves now · no run to estimate the time from",
    ]


def test_what_serves_on_and_what_nobody_knows():
    planning = planning_of(changes={"n1": (SWAPPINESS,)})
    assert shown(planning)[0] == "r_a   stays in rotation"
    assert "no replica leaves rotation" in shown(planning)[-1]
    waves = (Wave(("n1",), ("r_a",), Capacity((), 0), None),)
    assert "never fewer than 0 of 2 replicas, r_b not known" in shown(
        planning_of(changes={"n1": (DRIVER,)}, waves=waves, unknown=("r_b",), now=Capacity(("r_a",), 0))
    )[-1]  # fmt: skip


def test_a_gateway_stands_by_itself():
    fleet = replace(FLEET, hosts={**FLEET.hosts, "gw": host("gw")}, groups={"gateway": ("n1", "gw")})
    haproxy = change("provision-gateway.service", "old", "new", "reload")
    assert shown(planning_of(fleet, {"gw": (haproxy,)}), fleet)[2:4] == [
        "gateway   takes no replica out of rotation",
        "  gw  reload    provision-gateway.service  old → new  stack.driver changed (stack.lock.yml:2)",
    ]
    assert shown(planning_of(fleet, {"n3": (SWAPPINESS,)}), fleet)[-2] == "gateway   nothing to do"


def test_long_lists_and_long_differences_are_cut_unless_asked_for():
    many = tuple(change(f"x{number}", "0", "1") for number in range(20))
    planning = planning_of(changes={"n3": (*many, FILE)})
    lines = shown(planning)
    assert len(lines) == 15
    assert lines[-2].strip() == "and 10 more (driver 10); all of them: --diff"
    full = shown(planning, full=True)
    assert len([line for line in full if "0 → 1" in line]) == 20
    assert [line.strip() for line in full[-4:-1]] == ["a", "-b", "+c"]


def test_a_host_in_trouble_is_said():
    planning = planning_of(changes={"n3": (SWAPPINESS,)})
    planning.standing.receipts["n1"].trouble = Trouble("silent", "10.0.0.1 does not answer.", "Look.", unreachable=True)
    assert "  n1  10.0.0.1 does not answer.  Look." in shown(planning)
    assert planning.exit_code == exits.UNREACHABLE


def test_a_prediction_that_failed_is_said(tmp_path):
    failed = HostResult("n3", failure=Failure("swap", "Converge", "No room."))
    planning = replace(planning_of(), prediction=Result("id", tmp_path, tmp_path, check=True, hosts={"n3": failed}))
    assert shown(planning) == [
        "r_a   nothing to do",
        "r_b   cannot be planned as a whole",
        "  n3  cannot be foretold: swap: Converge: No room.",
        "No change is known.",
    ]
    assert planning.exit_code == exits.FAILED


def test_a_failed_run_has_a_reason_when_no_host_has(tmp_path):
    prediction = Result("id", tmp_path, tmp_path, check=True, hosts={}, error="No such module.")
    planning = replace(planning_of(), prediction=prediction)
    assert any("No such module." in line for line in shown(planning))


@pytest.fixture
def plans(monkeypatch, tmp_path):
    """Run `provision plan`, with a planning that is given."""

    def run(planning: Planning, *arguments: str, asked: list[Options] | None = None) -> int:
        def made(fleet: Fleet, options: Options, **_rest: object) -> Planning:
            (asked if asked is not None else []).append(options)
            return planning

        monkeypatch.setattr("provision.cli.plan.load", lambda inventory, lab: FLEET)
        monkeypatch.setattr("provision.cli.plan.make_plan", made)
        code = plan_command.main(["inventory", *arguments], standalone_mode=False)
        assert isinstance(code, int)
        return code

    return run


def test_exit_codes(plans, capsys):
    assert plans(planning_of()) == exits.OK
    assert plans(planning_of(changes={"n1": (SWAPPINESS,)})) == exits.PENDING


def test_the_hosts_that_failed_last_are_named_in_the_plan(plans, monkeypatch, capsys):
    asked: list[Options] = []
    monkeypatch.setattr("provision.cli.selection.last_failed", lambda path, lab: ["n1", "n2"])
    plans(planning_of(), "--limit", "@last-failed", asked=asked)
    assert [options.limit for options in asked] == ["n1,n2"]
    monkeypatch.setattr("provision.cli.selection.last_failed", lambda path, lab: [])
    assert plans(planning_of(), "--limit", "@last-failed", asked=asked) == exits.OK
    assert len(asked) == 1
    assert "failed in its last run" in capsys.readouterr().out


def test_the_file_is_written_and_named(plans, tmp_path, capsys):
    path = tmp_path / "my plan.json"
    planning = planning_of(changes={"n1": (SWAPPINESS,)})
    assert plans(planning, "--out", str(path)) == exits.PENDING
    assert capsys.readouterr().out.splitlines()[-1] == f"Apply exactly this:  provision apply '{path}'"
    assert read(path) == planning.plan


def test_json_is_the_document_alone(plans, tmp_path, capsys):
    planning = planning_of(changes={"n1": (SWAPPINESS,)})
    plans(planning, "--json", "--out", str(tmp_path / "plan.json"))
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "plan.json").read_text())
    assert printed["changes"]["n1"][0]["reason"]["kind"] == "drift"


def test_a_plan_that_is_not_whole_is_not_written(plans, tmp_path, capsys):
    planning = planning_of()
    planning.standing.receipts["n1"].trouble = Trouble("x", "It refuses.", "", unreachable=False)
    assert plans(planning, "--out", str(tmp_path / "plan.json")) == exits.FAILED
    assert "is not written" in capsys.readouterr().err
    assert not (tmp_path / "plan.json").exists()


@pytest.fixture
def applies(monkeypatch, tmp_path):
    """Run `provision apply` on a plan; what comes of it is given."""

    def run(outcome: Applied | PlanMovedError, *arguments: str) -> int:
        path = tmp_path / "plan.json"
        write(planning_of().plan, path)

        def done(*_arguments, **_options) -> Applied:
            if isinstance(outcome, PlanMovedError):
                raise outcome
            return outcome

        monkeypatch.setattr("provision.cli.apply.load", lambda inventory, lab: FLEET)
        monkeypatch.setattr("provision.cli.apply.apply_plan", done)
        code = apply.main([str(path), *arguments], standalone_mode=False)
        assert isinstance(code, int)
        return code

    return run


def result_of(tmp_path: Path, *hosts: HostResult) -> Result:
    (tmp_path / "log").write_text("x")
    return Result("id", tmp_path, tmp_path / "log", check=False, hosts={host.name: host for host in hosts}, seconds=1.0)


def test_nothing_left_to_do(applies, capsys):
    assert applies(Applied(None, hosts=3)) == exits.OK
    assert "nothing left to do" in capsys.readouterr().out
    assert applies(Applied(None, hosts=3), "--json") == exits.OK
    assert capsys.readouterr().out == ""


def test_what_was_done_otherwise_fails(applies, tmp_path, capsys):
    fine = result_of(tmp_path, HostResult("n1"))
    assert applies(Applied(fine)) == exits.OK
    assert applies(Applied(fine, ("n1: host: more",))) == exits.FAILED
    assert "n1: host: more" in capsys.readouterr().err


def test_a_plan_that_moved_has_its_own_exit_code(applies):
    with pytest.raises(PlanMovedError) as caught:
        applies(PlanMovedError("moved"))
    assert caught.value.exit_code == exits.PENDING
