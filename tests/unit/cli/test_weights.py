"""`provision weights`: what each host has, in which words, and what it means for a script."""

from __future__ import annotations

import json

import pytest

from provision import exits
from provision.cli import weights as command
from provision.cli.main import main
from provision.ssh.trouble import Trouble
from provision.weights.ask import Told

INVENTORY = "inventory/2x8xh800"
A, B = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def status(commit=A, current=A, previous="", whole=(A,), state=None):
    commits = [
        {"commit": each, "here": 7e9, "bytes": 7e9, "files": 3, "whole": each in whole, "bad": []} for each in (A, B)
    ]
    return {
        "commit": commit,
        "current": current,
        "previous": previous,
        "commits": commits,
        "free": 9e11,
        "state": state or {},
        "now": 20.0,
    }


@pytest.fixture
def fleet(monkeypatch):
    """Hosts that answer `answers[command]`, a list with an entry for each host or one for all; `.asked` is what was asked."""

    class Answers(dict):
        pass

    answers = Answers()

    def ask(hosts, what, commit="", timeout=0, keep=()):
        answers.asked.append((what, commit))
        answers.kept = keep
        given = answers[what]
        listed = given if isinstance(given, list) else [given] * len(hosts)
        return [
            Told(host, trouble=each) if isinstance(each, Trouble) else Told(host, each)
            for host, each in zip(hosts, listed, strict=True)
        ]

    answers.asked = []
    monkeypatch.setattr(command, "ask", ask)
    return answers


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as caught:
        main(["weights", *arguments])
    said = capsys.readouterr()
    return int(caught.value.code), said.out, said.err


def test_a_fleet_that_holds_it_all(capsys, fleet):
    fleet["status"] = status()
    code, out, _ = run(capsys, "plan", INVENTORY)
    assert code == exits.OK
    assert out.count("whole") == 2
    assert "is handed on: source → h800-01 → h800-02" in out


def test_a_fetch_under_way(capsys, fleet):
    state = {"commit": B, "done": False, "failed": "", "bytes": 2e9, "total": 7e9, "rate": 1e8, "eta": 50}
    state |= {"sources": {"10.1.4.72": 2e9}, "reason": ""}
    fleet["status"] = [status(B, state=state), status(B, state={**state, "reason": "the hub throttles (429)"})]
    code, out, _ = run(capsys, "plan", INVENTORY)
    assert code == exits.PENDING
    for words in ("2.0 GB", "7.0 GB", "0.1 GB/s", "50 s", "from 10.1.4.72", "waiting: the hub throttles (429)"):
        assert words in out
    code, out, _ = run(capsys, "plan", INVENTORY, "--json")
    (first, _second) = json.loads(out)["hosts"]
    assert (first["bytes"], first["eta"], first["source"], first["fetches"]) == (2e9, 50, "10.1.4.72", True)


def test_hosts_that_failed_or_are_gone(capsys, fleet):
    gone = Trouble("connect", "it does not answer", "", unreachable=True)
    fleet["status"] = [status(), gone]
    assert run(capsys, "plan", INVENTORY)[0] == exits.UNREACHABLE
    failed = status(B, state={"commit": B, "done": False, "failed": "The disk is full."})
    fleet["status"] = [failed, gone]
    code, out, _ = run(capsys, "plan", INVENTORY)
    assert code == exits.FAILED
    assert "The disk is full." in out


def test_all_switch_or_none(capsys, fleet):
    fleet["status"] = [status(B, A, whole=(A, B)), status(B, A, whole=(A,))]
    code, _, err = run(capsys, "switch", INVENTORY)
    assert code == exits.FAILED
    assert f"{B[:12]} is not whole on h800-02, so nothing was switched" in err
    assert fleet.asked == [("status", "")]
    fleet["status"], fleet["switch"] = status(B, A, whole=(A, B)), {"before": A, "current": B}
    code, out, _ = run(capsys, "switch", INVENTORY)
    assert code == exits.OK
    assert f"current: {A[:12]} → {B[:12]}" in out
    assert f"weights_revision: {B}" in out
    assert fleet.asked[-1] == ("switch", B)


def test_back_to_the_previous(capsys, fleet):
    fleet["status"], fleet["switch"] = status(B, B, A, whole=(A, B)), {"before": B, "current": A}
    assert run(capsys, "switch", INVENTORY, "--to", "previous")[0] == exits.OK
    assert fleet.asked[-1] == ("switch", A)
    fleet["status"] = [status(B, B, A), status(B, B, "")]
    code, _, err = run(capsys, "switch", INVENTORY, "--to", "previous")
    assert code == exits.USAGE
    assert "h800-02 none" in err


def test_what_is_wrong_is_named(capsys, fleet):
    good = {"commit": A, "files": 3, "bytes": 7e9, "wrong": [], "seconds": 2.0}
    fleet["verify"] = [good, {**good, "wrong": ["model-00002.safetensors"]}]
    code, out, _ = run(capsys, "verify", INVENTORY)
    assert code == exits.PENDING
    assert "wrong: model-00002.safetensors" in out
    assert "provision weights fetch" in out


def test_gc_shows_before_it_removes(capsys, fleet):
    fleet["status"] = status() | {"in_use": [A]}
    fleet["garbage"] = {"commits": {B: 7e9}, "removed": False, "free": 1}
    code, out, _ = run(capsys, "gc", INVENTORY)
    assert code == exits.PENDING
    assert f"would remove {B[:12]}, 7.0 GB" in out
    assert "--yes" in out
    fleet["collect"] = {"commits": {B: 7e9}, "removed": True, "free": 1}
    code, out, _ = run(capsys, "gc", INVENTORY, "--yes")
    assert code == exits.OK
    assert f"removed {B[:12]}" in out
    assert set(fleet.kept) == {A}  # which only the head of the replica knows


def test_there_must_be_something_to_hand_on(capsys, fleet):
    fleet["status"] = status(B, A, whole=())
    code, _, err = run(capsys, "distribute", INVENTORY)
    assert code == exits.FAILED
    assert "nothing to hand on" in err


def test_fetch_begins_follows_and_puts_in_place(capsys, fleet, monkeypatch):
    ran = []
    monkeypatch.setattr(command, "perform", lambda fleet, inventory, options: ran.append(options.stages) or exits.OK)
    monkeypatch.setattr(command.time, "sleep", lambda _: fleet.update(status=status(B, B, whole=(B,))))
    fleet["status"] = status(
        B,
        state={"commit": B, "done": False, "failed": "", "bytes": 1, "total": 2, "rate": 0, "eta": None, "reason": ""},
    )
    code, out, _ = run(capsys, "fetch", INVENTORY)
    assert code == exits.OK
    assert ran == [("site", "host", "tools", "transfer"), ("weights",)]
    assert out.count("whole") == 2
