"""The commands that read journals: `history`, `show` and `resume`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from provision import exits
from provision.cli import resume as resume_module
from provision.cli.main import main
from provision.cli.options import Options
from provision.converge.history import runs
from provision.converge.journal import Journal
from provision.converge.stages import STAGES

LIMITS = {"resource": "/etc/limits.conf", "before": "a\nb\nc\n", "after": "a\nx\nc\n"}
SWAPPINESS = {"resource": "vm.swappiness", "before": "60", "after": "10"}


def task(host: str, status: str, stage: str = "host", **fields) -> dict[str, object]:
    said = {"seconds": 1.0, "actions": [], "effects": [], "changes": [], "message": None, **fields}
    return {"type": "task_finished", "host": host, "stage": stage, "task": "Do it", "status": status, **said}


CHANGED = {"actions": ["Set [vm.swappiness]."], "effects": ["reload"], "changes": [SWAPPINESS, LIMITS]}


@pytest.fixture(autouse=True)
def _state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.5 50000 10.0.0.1 22")
    monkeypatch.setenv("COLUMNS", "200")
    counter = iter(range(1000))
    monkeypatch.setattr("provision.converge.journal.random.token_hex", lambda _n: f"{next(counter):04x}")


@pytest.fixture
def inventory(tmp_path) -> Path:
    return tmp_path / "prod"


@pytest.fixture
def journal(inventory, monkeypatch):
    """Make a run that ended so."""

    def make(code=0, events=(), statuses=None, **facts) -> Journal:
        statuses = {"n1": "changed", "n2": "changed"} if statuses is None else statuses
        facts = {"inventory": str(inventory), "hosts": list(statuses), "stages": list(STAGES), "check": False, **facts}
        monkeypatch.setattr(sys, "argv", ["provision", "bootstrap", str(inventory), "--limit", "a"])
        with Journal({"limit": None, **facts}) as made:
            for event in events:
                made.event(event)
            end = {"exit_code": code, "seconds": 2.0, "interrupted": code == 130, "error": None, "hosts": statuses}
            made.event({"type": "run_finished", **end})
            made.finish(code)
        return made

    return make


@pytest.fixture
def run(capsys):
    def call(*arguments: str | Path, code: int = exits.OK) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(map(str, arguments))
        said = capsys.readouterr()
        assert caught.value.code == code, said.err
        return said.out + said.err

    return call


def test_history_has_a_line_for_each_run(journal, run, inventory):
    good = journal(0, [task("n1", "changed", **CHANGED), task("n2", "ok")])
    bad = journal(1, [task("n1", "failed", message="No.")], {"n1": "failed", "n2": "ok"})
    lines = run("history").splitlines()
    assert lines[0].split() == ["run", "when", "who", "what", "hosts", "changes", "outcome", "seconds"]
    assert lines[1].startswith(bad.id)
    assert lines[1].endswith("failed (1 of 2)      2.0")
    assert lines[2].startswith(good.id)
    assert f"@{os.uname().nodename}  bootstrap prod --limit a" in lines[2]
    assert lines[2].split()[-4:] == ["2", "1", "converged", "2.0"]
    assert "--limit" in run("history", inventory, "-n", "1")
    assert good.id not in run("history", inventory, "-n", "1")


def test_history_without_runs(run, inventory):
    assert run("history") == "No run is kept here.\n"
    assert run("history", inventory) == f"No run of {inventory} is kept here.\n"


def test_history_as_json(journal, run, inventory):
    made = journal(3, statuses={"n1": "unreachable"})
    (found,) = json.loads(run("history", "--json"))["runs"]
    assert (found["id"], found["state"], found["exit_code"]) == (made.id, "finished", 3)
    assert (found["hosts"], found["origin"], found["inventory"]) == ({"n1": "unreachable"}, "10.0.0.5", str(inventory))


def test_show_tells_hosts_that_changed_alike_together(journal, run):
    journal(0, [task("n1", "changed", **CHANGED), task("n2", "changed", **CHANGED), task("n2", "ok", "gpu")])
    said = run("show", "last")
    assert "(process " in said
    assert ", from 10.0.0.5)" in said
    assert "\nn1, n2\n  host        Set [vm.swappiness].  reload\n" in said
    assert "vm.swappiness  60 → 10\n" in said
    assert "/etc/limits.conf\n" in said
    assert [line.strip() for line in said.splitlines() if line.strip().startswith(("+", "-"))] == ["-b", "+x"]
    assert said.rstrip().splitlines()[-1].startswith("Log: ")


def test_show_tells_what_failed(journal, run):
    refused = {
        "type": "host_refused",
        "host": "n2",
        "unreachable": True,
        "kind": "dns",
        "message": "No name.",
        "hint": "Set it.",
    }
    ends = [
        {"type": "host_finished", "host": "n1", "status": "failed", "counts": {}, "message": "Broken.", "held_back": []},
        {"type": "host_finished", "host": "n3", "status": "held_back", "counts": {}, "message": None, "held_back": ["ray", "vllm"]},
        {"type": "host_finished", "host": "n4", "status": "ok", "counts": {}, "message": None, "held_back": []},
    ]  # fmt: skip
    events = [
        refused,
        task("n1", "failed", message="Broken.\n  line 2"),
        task("n4", "failed", message="Rescued."),
        *ends,
    ]
    made = journal(1, events, {"n1": "failed", "n2": "unreachable", "n3": "held_back", "n4": "ok"})
    said = run("show", made.id)
    assert "Nothing was changed." in said
    assert "n1: host: Do it: Broken.\n    line 2\n" in said
    assert "n2: No name.\n  Set it.\n" in said
    assert "n3: ray, vllm not run" in said
    assert "Rescued" not in said
    found = json.loads(run("show", made.id, "--json"))
    assert found["hosts"]["n2"]["failure"] == {"kind": "dns", "message": "No name.", "hint": "Set it."}
    assert found["hosts"]["n4"]["failure"] is None


def test_show_of_no_run(run):
    assert "No run x is kept" in run("show", "x", code=exits.USAGE)


def killed(inventory: Path, **facts) -> None:
    """A run that was killed within a task of n1."""
    asked = {"inventory": str(inventory), "hosts": ["n1", "n2"], "stages": list(STAGES), "check": False, **facts}
    script = f"""
import os, signal
from provision.converge.journal import Journal
journal = Journal({asked!r})
for host in ("n1", "n2"):
    journal.event({{"type": "task_started", "host": host, "stage": "swap", "task": "Format"}})
journal.event({{**{task("n2", "ok", "swap")!r}, "task": "Format"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL


@pytest.fixture
def performed(monkeypatch) -> list[tuple[object, Path, Options]]:
    """The calls of what bootstrap does, which does nothing here."""
    calls: list[tuple[object, Path, Options]] = []
    monkeypatch.setattr(resume_module, "load", lambda inventory, lab: (inventory, lab))
    monkeypatch.setattr(resume_module, "perform", lambda *arguments: calls.append(arguments) or 0)
    return calls


def test_resume_asks_for_the_same_again(run, inventory, performed):
    killed(inventory, limit="a", asked_stages=["host", "swap"], full=True, forks=3, lab=True)
    (record,) = runs()
    said = run("resume", "--diff")
    assert f"Resuming {record.id}, begun at " in said
    assert "; it died at about " in said
    assert "n1 was in swap: Format\n" in said
    assert "n2 had done swap: Format\n" in said
    wanted = Options("a", ("host", "swap"), full=True, forks=3, diff=True, lab=True, resumes=record.id)
    assert performed == [((inventory, True), inventory, wanted)]


@pytest.mark.parametrize(("noted", "asked"), [(["n1"], ("n1",)), ([], ()), (None, None)])
def test_resume_reboots_no_more_than_the_plan_of_then(run, inventory, performed, noted, asked):
    killed(inventory, reboots=noted)
    run("resume", inventory)
    assert performed[0][2].reboots == asked


def test_a_limit_that_means_something_else_by_now_is_resumed_by_its_hosts(run, inventory, performed):
    killed(inventory, limit="@retry")
    run("resume", inventory)
    assert performed[0][2].limit == "n1,n2"


def test_resume_of_a_run_that_failed_somewhere(run, journal, performed):
    journal(1, [task("n1", "failed", message="No.")], {"n1": "failed", "n2": "ok"})
    said = run("resume")
    assert "it ended as failed." in said
    assert "n1 had failed, last in host: Do it\n" in said


def test_as_json_resume_says_nothing_itself(run, inventory, performed):
    killed(inventory)
    assert run("resume", "--json") == ""
    assert performed[0][2].as_json


def test_nothing_to_resume(run, journal, inventory, performed):
    journal(0)
    assert run("resume") == "Nothing to resume: every run came to its end.\n"
    assert "Nothing to resume for" in run("resume", inventory)
    assert performed == []
