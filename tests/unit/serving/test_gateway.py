"""Asking the gateways of a fleet: what they say together, draining until nothing is in flight, admitting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from provision.inventory import Fleet, Host, Replica
from provision.serving import gateway
from provision.serving.gateway import GatewayError, Rotation
from provision.ssh import Answer, Call
from provision.ssh.trouble import Trouble
from provision.stack import load_stack


def host(name: str) -> Host:
    return Host(name, name, "ops", None, None, (), {}, (), {"gateway_drain_timeout": 600})


REPLICA = Replica("r1", (host("gpu-1"),))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    hosts = {name: host(name) for name in ("gw-1", "gw-2")}
    groups = {"gateway": ("gw-1", "gw-2")}
    return Fleet(tmp_path, (tmp_path,), hosts, groups, (REPLICA,), load_stack(tmp_path), lab=False)


class Gateways:
    """Stands for the hosts: the state of r1 on each, one after another; the last again and again."""

    def __init__(self, **states: list[tuple[str, int]]) -> None:
        self.states = {name.replace("_", "-"): list(own) for name, own in states.items()}
        self.told: list[str] = []
        self.broken: dict[str, Answer] = {}

    def __call__(self, calls: list[Call], **_: object) -> list[Answer]:
        return [self.answer(one) for one in calls]

    def answer(self, one: Call) -> Answer:
        words = one.script.rpartition(gateway.PROGRAM)[2].strip()
        if one.host.name in self.broken:
            return self.broken[one.host.name]
        if words != "state":
            self.told.append(f"{one.host.name}: {words}")
            return Answer(one.host)
        own = self.states[one.host.name]
        state, in_flight = own.pop(0) if len(own) > 1 else own[0]
        row = {"rotation": state, "in_flight": in_flight, "check": "L7OK", "by": "", "since_s": 1}
        return Answer(one.host, json.dumps({"r1": row}))


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch):
    def make(**states: list[tuple[str, int]]) -> Gateways:
        made = Gateways(**states)
        monkeypatch.setattr(gateway, "call", made)
        monkeypatch.setattr(gateway, "LOOK_S", 0)
        return made

    return make


def test_what_holds_is_the_worst_state_and_all_requests(fleet: Fleet, ask) -> None:
    ask(gw_1=[("in", 2)], gw_2=[("draining", 3)])
    assert gateway.standing(gateway.look(fleet), "r1") == Rotation("draining", 5, "L7OK")
    assert gateway.standing(gateway.look(fleet), "r9") is None


def test_a_drain_ends_when_no_gateway_has_a_request_in_flight(fleet: Fleet, ask) -> None:
    gateways = ask(
        gw_1=[("in", 2), ("draining", 2), ("draining", 0)],
        gw_2=[("in", 1), ("draining", 1), ("draining", 1), ("draining", 0)],
    )
    seen: list[int] = []
    done = gateway.drain(fleet, REPLICA, 60, by="run 7", on_look=lambda one: seen.append(one.in_flight))
    assert (done.in_flight, seen) == (0, [3, 1, 0])
    assert gateways.told == ["gw-1: drain r1 'run 7'", "gw-2: drain r1 'run 7'"]


def test_a_deadline_ends_a_drain_and_tells_what_is_left(fleet: Fleet, ask) -> None:
    ask(gw_1=[("draining", 2)], gw_2=[("draining", 0)])
    assert gateway.drain(fleet, REPLICA, 0, by="x").in_flight == 2


def test_a_gateway_that_cannot_be_told_stops_a_drain(fleet: Fleet, ask) -> None:
    gateways = ask(gw_1=[("in", 0)], gw_2=[("in", 0)])
    gateways.broken["gw-2"] = Answer(host("gw-2"), trouble=Trouble("timeout", "nothing answers", "look", True))
    with pytest.raises(GatewayError, match="r1 could not be drained at gateway gw-2: nothing answers"):
        gateway.drain(fleet, REPLICA, 60, by="x")
    assert gateways.told == []


def test_one_that_falls_silent_meanwhile_has_the_others_take_it_back(fleet: Fleet, ask, monkeypatch) -> None:
    gateways = ask(gw_1=[("in", 0)], gw_2=[("in", 0)])
    silent = Answer(host("gw-2"), trouble=Trouble("timeout", "nothing answers", "look", True))

    def answer(one: Call) -> Answer:
        return silent if one.host.name == "gw-2" and "drain" in one.script else gateways.answer(one)

    monkeypatch.setattr(gateway, "call", lambda calls, **_: [answer(one) for one in calls])
    with pytest.raises(GatewayError, match="at gateway gw-2"):
        gateway.drain(fleet, REPLICA, 60, by="x")
    assert gateways.told == ["gw-1: drain r1 x", "gw-1: admit r1"]


def test_a_gateway_that_does_not_answer_for_a_moment_ends_no_drain(fleet: Fleet, ask, monkeypatch) -> None:
    gateways = ask(gw_1=[("in", 1), ("draining", 0)], gw_2=[("in", 0), ("draining", 0)])
    silent = Answer(host("gw-2"), trouble=Trouble("timeout", "nothing answers", "look", True))
    missed = iter([False, False, True, True, False])  # the first look, the drain, two looks, a third

    def answer(calls: list[Call], **_: object) -> list[Answer]:
        out = next(missed)
        return [silent if out and one.host.name == "gw-2" else gateways.answer(one) for one in calls]

    monkeypatch.setattr(gateway, "call", answer)
    assert gateway.drain(fleet, REPLICA, 60, by="x").in_flight == 0
    assert list(missed) == []


def test_one_that_stays_silent_ends_the_drain_and_the_others_take_it_back(fleet: Fleet, ask, monkeypatch) -> None:
    gateways = ask(gw_1=[("in", 1), ("draining", 1)], gw_2=[("in", 0)])
    silent = Answer(host("gw-2"), trouble=Trouble("timeout", "nothing answers", "look", True))
    asked: list[int] = []

    def answer(calls: list[Call], **_: object) -> list[Answer]:
        asked.append(1)
        return [silent if len(asked) > 2 and one.host.name == "gw-2" else gateways.answer(one) for one in calls]

    monkeypatch.setattr(gateway, "call", answer)
    monkeypatch.setattr(gateway, "HICCUP_S", 0.1)
    with pytest.raises(GatewayError, match="r1 could not be seen at gateway gw-2: nothing answers"):
        gateway.drain(fleet, REPLICA, 60, by="x")
    assert gateways.told[-1] == "gw-1: admit r1"


def test_a_drain_that_somebody_ends_is_no_drain(fleet: Fleet, ask) -> None:
    ask(gw_1=[("in", 1), ("draining", 1), ("in", 1)], gw_2=[("in", 1), ("draining", 1), ("in", 1)])
    with pytest.raises(GatewayError, match="sent requests again by somebody else"):
        gateway.drain(fleet, REPLICA, 60, by="x")


def test_a_person_counts_before_a_run_whatever_is_worst() -> None:
    rows = [("down", ""), ("draining", "run 6"), ("in", "provision serve drain")]
    seen = [gateway.Gateway(host("gw"), {"r1": Rotation(state, 0, "L7OK", by)}) for state, by in rows]
    assert gateway.standing(seen[:2], "r1") == Rotation("down", 0, "L7OK", "run 6")
    assert gateway.standing(seen, "r1") == Rotation("down", 0, "L7OK", "provision serve drain")


def test_a_gateway_that_is_not_there_yet_holds_up_none(fleet: Fleet, ask) -> None:
    gateways = ask(gw_1=[("draining", 0)], gw_2=[("in", 0)])
    gateways.broken["gw-2"] = Answer(host("gw-2"), code=gateway.NOT_FOUND)
    assert gateway.drain(fleet, REPLICA, 60, by="x").in_flight == 0
    gateways.broken["gw-1"] = Answer(host("gw-1"), code=gateway.NOT_FOUND)
    with pytest.raises(GatewayError, match="there is no gateway on gw-1, gw-2 yet"):
        gateway.drain(fleet, REPLICA, 60, by="x")


def test_a_replica_is_admitted_when_every_gateway_sends_it_requests(fleet: Fleet, ask) -> None:
    gateways = ask(gw_1=[("in", 0)], gw_2=[("down", 0), ("down", 0), ("in", 0)])
    gateway.admit(fleet, REPLICA)
    assert gateways.told == ["gw-1: admit r1", "gw-2: admit r1"]


def test_one_whose_check_does_not_pass_is_told_with_what_it_says(fleet: Fleet, ask) -> None:
    ask(gw_1=[("down", 0)], gw_2=[("in", 0)])
    with pytest.raises(GatewayError, match="is still down: its check says L7OK"):
        gateway.admit(fleet, REPLICA, wait_s=0)


def test_what_a_program_says_instead_is_told(fleet: Fleet, ask) -> None:
    gateways = ask(gw_1=[("in", 0)], gw_2=[("in", 0)])
    gateways.broken["gw-2"] = Answer(host("gw-2"), code=1, error="The gateway does not answer")
    assert [one.error for one in gateway.look(fleet)] == ["", "The gateway does not answer"]
