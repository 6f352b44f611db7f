"""`provision serve`: what it says, and in which order it does things."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from provision.cli.resume import back_by, resume
from provision.cli.serve import serve
from provision.converge.history import RunRecord
from provision.converge.lock import locked
from provision.errors import LockedError, ProvisionError, UsageError
from provision.inventory import load_fleet
from provision.serving import gateway, restart
from provision.serving.gateway import Drained, Rotation
from provision.serving.restart import RestartError
from provision.ssh import Answer, Call

STATES: dict[str, Rotation] = {}
BY_RESTART = "run of provision serve restart"


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Two replicas, one of two hosts, and a gateway."""
    hosts = {name: {"ansible_host": f"10.0.0.{number}"} for number, name in enumerate(("a1", "a2", "b1", "gw"), 1)}
    children = {"a": {"hosts": {n: hosts[n] for n in ("a1", "a2")}}, "b": {"hosts": {"b1": hosts["b1"]}}}
    common = {"hardware_profile": "8xh20-96", "weights_repo": "org/model", "vllm_tensor_parallel_size": 8}
    children["a"]["vars"] = {"vllm_pipeline_parallel_size": 2}
    tree = {"serving": {"children": children, "vars": common}, "gateway": {"hosts": {"gw": hosts["gw"]}}}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return tmp_path


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What was done, in order, by stand-ins for the gateways and the hosts; `STATES` is what the gateway has."""
    STATES.update(dict.fromkeys("ab", Rotation("in", 0, "L7OK")))
    found: list[str] = []

    def drain(fleet, replica, deadline_s, *, by, on_look):
        on_look(Rotation("draining", 2, ""))
        found.append(f"drain {replica.name} {deadline_s:.0f} by {by}")
        return Drained(0, 3.2)

    def admit(fleet, replica):
        found.append(f"admit {replica.name}")
        return 1.0

    def call(calls: list[Call], **_: object) -> list[Answer]:
        found.extend(f"{one.host.name}: {one.script.removesuffix(' 2>&1')}" for one in calls)
        return [Answer(one.host) for one in calls]

    class Lease:
        def __init__(self, hosts, run):
            found.append(f"hold {', '.join(host.name for host in hosts)}")

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("provision.cli.serve.Lease", Lease)
    monkeypatch.setattr(gateway, "look", lambda fleet: [gateway.Gateway(fleet.gateways[0], STATES)])
    monkeypatch.setattr(gateway, "drain", drain)
    monkeypatch.setattr(gateway, "admit", admit)
    monkeypatch.setattr(restart, "call", call)
    monkeypatch.setattr(restart, "_wait", lambda fleet, replica: found.append(f"token of {replica.name}"))
    return found


def run(*arguments: object) -> str:
    result = CliRunner().invoke(serve, [str(argument) for argument in arguments])
    if isinstance(result.exception, ProvisionError):
        raise result.exception
    return result.output


def test_who_presses_ctrl_c_is_told_how_things_are_left(inventory: Path, done: list[str], monkeypatch) -> None:
    def wait(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(restart, "_wait", wait)
    said = run("restart", inventory, "a")
    assert f"Start them and take it back:  provision bootstrap {inventory} --limit a" in said
    monkeypatch.setattr(gateway, "drain", wait)
    assert f"Back in:  provision serve admit {inventory} b" in run("drain", inventory, "b")


def test_drain_says_what_is_in_flight_and_how_to_go_back(inventory: Path, done: list[str]) -> None:
    said = run("drain", inventory, "b")
    assert "b is draining: 2 in flight" in said
    assert f"Back in:  provision serve admit {inventory} b" in said
    assert done == ["drain b 600 by provision serve drain"]
    run("drain", inventory, "b", "--deadline", 5)
    assert done[-1] == "drain b 5 by provision serve drain"


def test_admit(inventory: Path, done: list[str]) -> None:
    assert run("admit", inventory, "a") == "a is in rotation, after 1 s.\n"


def test_restart_drains_first_restarts_in_order_and_admits_what_generates(inventory: Path, done: list[str]) -> None:
    run("restart", inventory, "a")
    assert done == [
        "hold a1, a2",
        f"drain a 600 by {BY_RESTART}",
        "a1: systemctl stop vllm.service",
        "a2: systemctl stop ray-worker.service",
        "a1: systemctl restart ray-head.service",
        "a2: systemctl start ray-worker.service",
        "a1: systemctl start vllm.service",
        "token of a",
        "admit a",
    ]
    done.clear()
    run("restart", inventory, "b")
    assert done[2:-2] == ["b1: systemctl restart vllm.service"]


def test_the_last_in_rotation_is_not_restarted_unless_a_person_drained_it(inventory: Path, done: list[str]) -> None:
    STATES["a"] = Rotation("down", 0, "L4CON")
    with pytest.raises(UsageError, match="b is the only replica in rotation"):
        run("restart", inventory, "b")
    assert done == ["hold b1"]
    STATES["b"] = Rotation("draining", 0, "L7OK", "provision serve drain")
    assert "b generates, and stays drained" in run("restart", inventory, "b")
    assert "drain b 600 by provision serve drain" in done
    assert "admit b" not in done


def test_what_a_run_is_changing_is_not_restarted(inventory: Path, done: list[str]) -> None:
    with locked(inventory), pytest.raises(LockedError):
        run("restart", inventory, "b")
    assert done == []


def test_what_does_not_restart_stays_out(inventory: Path, done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restart, "call", lambda calls, **_: [Answer(one.host, "no such unit", 5) for one in calls])
    with pytest.raises(
        RestartError, match=r"did not succeed on b1: no such unit\n.*stays out of rotation.*\n.*status vllm"
    ):
        run("restart", inventory, "b")
    assert not [what for what in done if what.startswith("admit")]


def test_names_and_gateways_that_do_not_exist(inventory: Path, done: list[str]) -> None:
    with pytest.raises(ProvisionError, match=r"has no replica c\. It has a, b\."):
        run("drain", inventory, "c")
    tree = yaml.safe_load((inventory / "hosts.yml").read_text())
    del tree["gateway"]
    (inventory / "hosts.yml").write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(ProvisionError, match="has no gateway, so there is no rotation"):
        run("drain", inventory, "b")
    assert "There is no gateway: whoever asks b meanwhile is refused." in run("restart", inventory, "b")
    assert done == ["hold b1", "b1: systemctl restart vllm.service", "token of b"]


def test_rollback_is_a_bootstrap_of_one_replica_by_the_inventory_as_it_was(
    inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    then = load_fleet(inventory)
    record = RunRecord(Path("/runs/20261123T010203Z-4f1c"), {"started": "2026-11-23T01:02:03Z"})
    monkeypatch.setattr("provision.cli.serve.earlier", lambda fleet, replica, run: asked.append(run) or record)
    monkeypatch.setattr("provision.cli.serve.as_it_was", lambda fleet, replica, run: then)
    monkeypatch.setattr("provision.cli.serve.perform", lambda *how: asked.append(how) or 0)
    said = run("rollback", inventory, "b")
    assert "b goes back to what run 20261123T010203Z-4f1c of" in said
    assert "those that it names today" in said  # of a branch
    assert f"{inventory} still says otherwise" in said
    none, (fleet, _, options) = asked
    assert (none, fleet, options.limit, options.back_to) == (None, then, "b", record.id)
    assert "driver" not in options.stages
    assert "vllm" in options.stages
    said = run("rollback", inventory, "b", "--to", "4f1c", "--check")
    assert "would go back" in said
    assert "otherwise" not in said
    assert asked[2] == "4f1c"
    assert asked[3][2].check


def test_resuming_what_went_back_goes_on_by_the_inventory_as_it_was(
    inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provision.cli.resume.earlier", lambda fleet, replica, run: (replica.name, run))
    monkeypatch.setattr("provision.cli.resume.as_it_was", lambda fleet, replica, found: found)
    fleet = load_fleet(inventory)
    assert back_by(fleet, RunRecord(inventory, {"limit": "b"})) is fleet
    assert back_by(fleet, RunRecord(inventory, {"limit": "b", "back_to": "x"})) == ("b", "x")
    with pytest.raises(UsageError, match=r"which .* has no more"):
        back_by(fleet, RunRecord(inventory, {"limit": "gone", "back_to": "x"}))


def test_what_went_back_since_is_not_brought_forward_by_resuming(
    inventory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = RunRecord(Path("/runs/20261123T010000Z-0000"), {"inventory": str(inventory), "stages": ["vllm"]})
    back = RunRecord(Path("/runs/20261123T020000Z-0000"), {"inventory": str(inventory), "back_to": "x", "limit": "b"})
    monkeypatch.setattr("provision.cli.resume.last_unfinished", lambda inventory: failed)
    monkeypatch.setattr("provision.cli.resume.runs", lambda *_how, **_more: [back, failed])
    result = CliRunner().invoke(resume, [str(inventory)])
    assert isinstance(result.exception, UsageError)
    assert "b was brought back" in str(result.exception)
