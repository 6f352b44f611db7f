"""Replicas leave rotation before a run disturbs them, and come back when they stand: never those that people drained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from provision.converge import rotation
from provision.converge.recorder import Recorder
from provision.converge.rotation import Rotation
from provision.errors import LockedError
from provision.inventory import Fleet, Host, Replica
from provision.serving import gateway
from provision.serving.gateway import Drained, Gateway, GatewayError
from provision.stack import load_stack


def host(name: str) -> Host:
    return Host(name, name, "ops", None, None, (), {}, (), {"gateway_drain_timeout": 600, "vllm_start_timeout": 1800})


A, B = (Replica(name, (host(f"gpu-{name}"),)) for name in "ab")


class World:
    """The gateway as it was told last; `broken` says what it answers instead."""

    def __init__(self) -> None:
        self.states = {"a": gateway.Rotation("in", 0, "L7OK"), "b": gateway.Rotation("in", 0, "L7OK")}
        self.told: list[str] = []
        self.broken = ""
        self.missing = False
        self.held = False
        self.silent = ""
        self.stands = True

    @contextmanager
    def hold(self, replica: Replica) -> Iterator[None]:
        if self.held:
            raise LockedError("another run is at work there")
        self.told.append(f"hold {replica.name}")
        yield

    def let(self, fleet: Fleet, replica: Replica) -> None:
        self.told.append(f"let {replica.name}")

    def look(self, fleet: Fleet) -> list[Gateway]:
        if self.missing:
            return [Gateway(fleet.gateways[0], {}, "there is no gateway yet", missing=True)]
        if self.silent:
            return [Gateway(fleet.gateways[0], {}, self.silent)]
        return [Gateway(fleet.gateways[0], self.states)]

    def drain(self, fleet: Fleet, replica: Replica, deadline_s: float, *, by: str) -> Drained:
        if self.broken:
            raise GatewayError(self.broken)
        self.told.append(f"drain {replica.name} {deadline_s:.0f}")
        self.states[replica.name] = gateway.Rotation("draining", 0, "L7OK", by)
        return Drained(2, 1.5)

    def admit(self, fleet: Fleet, replica: Replica, wait_s: float) -> float:
        assert wait_s == 1800
        if self.broken:
            raise GatewayError(self.broken)
        self.told.append(f"admit {replica.name}")
        self.states[replica.name] = gateway.Rotation("in", 0, "L7OK")
        return 1.0


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    for name in ("look", "drain", "admit", "let"):
        monkeypatch.setattr(gateway, name, getattr(made, name))
    return made


@pytest.fixture
def events() -> list[dict]:
    return []


@pytest.fixture
def run(tmp_path: Path, world: World, events: list[dict]) -> Rotation:
    fleet = Fleet(
        tmp_path, (tmp_path,), {"gw": host("gw")}, {"gateway": ("gw",)}, (A, B), load_stack(tmp_path), lab=False
    )
    return rotation_of(fleet, world, events)


def rotation_of(fleet: Fleet, world: World, events: list[dict], gates: bool = True) -> Rotation:
    recorder = Recorder(["gpu-a", "gpu-b"], (), "7", events.append)
    return Rotation(fleet, recorder, "7", world.hold, gates, lambda _replica: world.stands)


def failure(run: Rotation, name: str) -> str:
    found = run._recorder.hosts[name].failure
    return found.message if found else ""


def test_a_replica_leaves_and_comes_back(run: Rotation, world: World, events: list[dict]) -> None:
    assert run.leave([A])
    assert world.states["a"].by == "run 7"
    assert run.come_back([A])
    assert world.told == ["drain a 600", "admit a"]
    assert [(event["type"], event["replica"]) for event in events] == [
        ("replica_drained", "a"),
        ("replica_admitted", "a"),
    ]
    assert events[0]["in_flight"] == 2


@pytest.mark.parametrize("state", ["draining", "down"])
def test_what_a_person_drained_stays_out(run: Rotation, world: World, state: str) -> None:
    world.states["a"] = gateway.Rotation(state, 0, "L7OK", "provision serve drain")
    assert run.leave([A])  # what is in flight there is waited for all the same
    assert world.states["a"].by == "provision serve drain"
    assert run.come_back([A])
    assert world.told == ["drain a 600"]


def test_the_last_one_in_rotation_is_left_there(run: Rotation, world: World) -> None:
    world.states["b"] = gateway.Rotation("draining", 0, "L7OK", "run 6")
    assert not run.leave([A])
    assert world.told == []
    assert "a is the only replica in rotation" in failure(run, "gpu-a")


def test_what_a_run_that_died_left_out_comes_back_and_nothing_else(run: Rotation, world: World) -> None:
    world.states["b"] = gateway.Rotation("down", 0, "L4CON", "run 6")  # its check has not seen it yet
    assert run.come_back([A, B])
    assert world.told == ["hold b", "admit b"]


def test_what_another_run_had_no_reason_to_admit_stays_out(run: Rotation, world: World, events: list[dict]) -> None:
    world.states["b"] = gateway.Rotation("draining", 0, "L7OK", "run 6")  # it generates, but what it should not
    world.stands = False
    assert run.come_back([A, B])
    assert run.come_back([A, B])
    assert world.told == ["hold b", "hold b"]
    assert run._recorder.hosts["gpu-b"].stays_out == "run 6"
    assert [(event["type"], event["replica"], event["by"]) for event in events] == [("replica_stays_out", "b", "run 6")]
    world.stands = True
    assert run.come_back([B])
    assert run._recorder.hosts["gpu-b"].stays_out == ""


@pytest.mark.parametrize(("gates", "by", "told"), [(True, "run 7", ["admit b"]), (False, "run 6", ["hold b"])])
def test_a_run_without_gates_takes_over_no_drain(
    run: Rotation, world: World, events: list[dict], gates: bool, by: str, told: list[str]
) -> None:
    world.states["b"] = gateway.Rotation("draining", 0, "L7OK", "run 6")
    world.stands = False
    own = rotation_of(run._fleet, world, events, gates)
    assert own.leave([B])
    assert world.states["b"].by == by
    assert own.come_back([B])
    assert world.told == ["drain b 600", *told]


def test_who_was_taken_out_has_not_come_back_while_no_gateway_answers(
    run: Rotation, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "HICCUP_S", 0)
    assert run.leave([A])
    world.silent = "no route to host."
    assert run.come_back([B])  # which nobody took out
    assert not run.come_back([A])
    assert "Gateway gw: no route to host. So it stays drained." in failure(run, "gpu-a")
    assert failure(run, "gpu-b") == ""


def test_a_gateway_that_is_silent_for_a_moment_is_asked_again(
    run: Rotation, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run.leave([A])
    world.silent = "no route to host"
    monkeypatch.setattr(gateway.time, "sleep", lambda _seconds: setattr(world, "silent", ""))
    assert run.come_back([A])
    assert world.told == ["drain a 600", "admit a"]


@pytest.mark.parametrize(("by", "told"), [("provision serve drain", []), ("run 6", ["hold a"])])
def test_a_gateway_that_is_new_learns_what_is_drained(
    run: Rotation, world: World, monkeypatch: pytest.MonkeyPatch, by: str, told: list[str]
) -> None:
    drained = gateway.Rotation("draining", 0, "L7OK", by)
    new = Gateway(host("gw-2"), {name: gateway.Rotation("in", 0, "L7OK") for name in "ab"})
    old = Gateway(host("gw-1"), {**new.replicas, "a": drained})
    monkeypatch.setattr(gateway, "look", lambda _fleet: [old, new])
    spread = []
    monkeypatch.setattr(gateway, "_tell", lambda hosts, *words: spread.append((hosts[0].name, *words)) or [old])
    run.tell_all()
    assert spread == [("gw-2", "drain", "a", by)]
    assert world.told == told


def test_where_all_gateways_know_the_same_none_is_asked_again(
    run: Rotation, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.states["a"] = gateway.Rotation("draining", 0, "L7OK", "provision serve drain")
    assert run.come_back([A])
    monkeypatch.setattr(gateway, "look", lambda _fleet: pytest.fail("there is nothing to tell"))
    run.tell_all()


def test_what_a_run_that_lives_has_drained_is_left_to_it(run: Rotation, world: World) -> None:
    world.states["b"] = gateway.Rotation("draining", 0, "L7OK", "run 6")
    world.held = True
    assert run.come_back([A, B])
    assert world.told == []


def test_one_that_does_not_serve_is_kept_out_while_it_is_changed(run: Rotation, world: World, events: list) -> None:
    world.states["a"] = gateway.Rotation("down", 0, "L4CON")
    run.keep_out([A])
    assert world.states["a"].by == "run 7"
    assert run.come_back([A])
    assert world.told == ["drain a 0", "let a"]  # and not waited for: it did not serve before
    assert events == []


def test_one_that_was_revived_meanwhile_ends_what_it_has(run: Rotation, world: World) -> None:
    run.keep_out([A])
    assert world.told == ["drain a 600"]


def test_one_that_does_not_serve_is_changed_although_a_gateway_cannot_be_told(run: Rotation, world: World) -> None:
    world.states["a"] = gateway.Rotation("down", 0, "L4CON")
    world.broken = "a could not be drained at gateway gw: nothing answers"
    run.keep_out([A])
    assert failure(run, "gpu-a") == ""


@pytest.mark.parametrize("by", ["run 6", "provision serve drain"])
def test_one_that_is_out_already_is_kept_out_by_whoever_drained_it(run: Rotation, world: World, by: str) -> None:
    world.states["a"] = gateway.Rotation("down", 0, "L4CON", by)
    run.keep_out([A])
    assert world.told == []


def test_one_that_cannot_be_drained_is_not_changed(run: Rotation, world: World) -> None:
    world.broken = "a could not be drained at gateway gw: nothing answers"
    assert not run.leave([A])
    assert failure(run, "gpu-a") == "a could not be drained at gateway gw: nothing answers Nothing was changed there."
    assert failure(run, "gpu-b") == ""


def test_one_that_does_not_come_back_has_failed(run: Rotation, world: World) -> None:
    run.leave([A])
    world.broken = "a is allowed back, but 60 s later is still down"
    assert not run.come_back([A])
    assert "still down" in failure(run, "gpu-a")


def test_before_the_first_gateway_runs_nothing_is_asked_of_it(run: Rotation, world: World) -> None:
    world.missing = True
    assert run.leave([A])
    assert run.come_back([A])
    assert world.told == []


def test_without_a_gateway_none_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation.gateway, "look", lambda _fleet: pytest.fail("there is none to look at"))
    fleet = Fleet(tmp_path, (tmp_path,), {}, {}, (A,), load_stack(tmp_path), lab=False)
    run = Rotation(
        fleet, Recorder(["gpu-a"], (), "7", lambda _event: None), "7", nullcontext, True, lambda _replica: True
    )
    assert run.leave([A])
    assert run.come_back([A])
