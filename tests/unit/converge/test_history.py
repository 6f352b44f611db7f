from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from provision.converge import history
from provision.converge.history import last_failed, last_unfinished, load, runs
from provision.converge.journal import Journal, now
from provision.converge.stages import STAGES
from provision.errors import UsageError

PROD = Path("/inventory/prod")
END = ("run_finished", {"seconds": 2.0, "interrupted": False, "error": None})


@pytest.fixture(autouse=True)
def _ids(state, monkeypatch):
    """Runs of the same second are told apart by chance; in these tests by the order in which they were made."""
    counter = iter(range(1000))
    monkeypatch.setattr("provision.converge.journal.random.token_hex", lambda _n: f"{next(counter):04x}")


def run(code=0, *, inventory=PROD, stages=STAGES, error=None, **facts) -> Journal:
    """A run that ended so. The hosts' statuses are given as `statuses`."""
    statuses = facts.pop("statuses", {"n1": "ok", "n2": "changed"})
    facts = {"inventory": str(inventory), "hosts": list(statuses), "stages": list(stages), "check": False, **facts}
    with Journal({"limit": None, **facts}) as journal:
        said = {"exit_code": code, "seconds": 2.0, "interrupted": code == 130, "error": error, "hosts": statuses}
        journal.event({"type": "run_finished", "time": now(), "run": journal.id, **said})
        journal.finish(code)
    return journal


def dead(**facts) -> Path:
    """The directory of a run whose process was killed in the second task of n1."""
    facts = {"inventory": str(PROD), "hosts": ["n1"], "stages": list(STAGES), "check": False, "limit": None, **facts}
    done = {"status": "ok", "seconds": 1, "actions": [], "changes": [], "message": None}
    script = f"""
import os, signal
from provision.converge.journal import Journal
journal = Journal({facts!r})
task = {{"type": "task_started", "host": "n1", "stage": "host", "task": "One"}}
journal.event(task)
journal.event({{**task, "type": "task_finished", **{done!r}}})
journal.event({{**task, "task": "Two"}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    return runs()[0].directory


def test_newest_first_and_of_one_inventory(state):
    first, other, second = run(), run(inventory="/inventory/other"), run(lab=True)
    assert [found.id for found in runs()] == [second.id, other.id, first.id]
    assert [found.id for found in runs(PROD)] == [second.id, first.id]
    assert [found.id for found in runs(PROD, lab=False)] == [first.id]
    (state / "runs/20990101T000000Z-torn").mkdir()
    (state / "runs/20990101T000000Z-torn/run.json").write_text('{"id"')
    assert len(runs()) == 3


@pytest.mark.parametrize(("code", "expected"), [(0, "finished"), (1, "finished"), (130, "interrupted")])
def test_states_of_runs_that_ended(code, expected):
    run(code)
    assert runs()[0].state == expected


def test_a_run_is_running_while_its_process_is(state):
    journal = Journal({"inventory": str(PROD)})
    assert runs()[0].state == "running"
    assert last_unfinished() is None
    with journal:
        pass


def test_the_process_tells_where_the_file_system_has_no_locks(monkeypatch):
    journal = Journal({})
    monkeypatch.setattr(history, "is_open", lambda _directory: False)
    assert runs()[0].state == "running"
    facts = json.loads((journal.directory / "run.json").read_text())
    (journal.directory / "run.json").write_text(json.dumps({**facts, "process_started": 1}))
    assert runs()[0].state == "died"
    (journal.directory / "run.json").write_text(json.dumps({**facts, "boot_id": "another"}))
    assert runs()[0].state == "died"


def test_a_killed_run_died_and_where_it_stood_is_known():
    directory = dead()
    with (directory / "events.jsonl").open("a") as file:
        file.write('{"type": "task_fin')
    record = last_unfinished(PROD)
    assert record is not None
    assert (record.directory, record.state) == (directory, "died")
    assert record.outcome.last == {"n1": "host: Two"}
    assert record.outcome.running == {"n1"}
    assert len(list(record.events())) == 3


def test_the_last_failed_are_those_of_the_last_run_that_was_to_change_something():
    run(1, statuses={"n0": "failed"})
    run(1, statuses={"n1": "failed", "n2": "unreachable", "n3": "held_back", "n4": "ok", "n5": "changed"})
    run(1, check=True, statuses={"n9": "failed"})
    run(75, statuses={"n9": "failed"})
    dead()
    assert last_failed(PROD) == ("n1", "n2", "n3")
    run(0)
    assert last_failed(PROD) == ()
    assert last_failed(Path("/inventory/new")) == ()


@pytest.mark.parametrize(
    ("later", "still"),
    [
        ([], True),
        ([{"statuses": {"n1": "ok", "n2": "ok"}}], False),
        ([{"statuses": {"n1": "ok"}, "limit": "n1"}], True),
        ([{"statuses": {"n1": "ok"}, "limit": "n1"}, {"statuses": {"n2": "changed"}, "limit": "n2"}], False),
        ([{"stages": ["host"]}], True),
        ([{"stages": STAGES[:4]}, {"stages": STAGES[4:]}], False),
        ([{"check": True}], True),
        ([{"code": 75}], True),
        ([{"inventory": "/inventory/other"}], True),
        ([{"statuses": {"n7": "ok"}}], False),
        ([{"error": "Ansible broke", "code": 1}], "later"),
        ([{"code": 130}], "later"),
    ],
)
def test_a_failure_is_unfinished_until_later_runs_have_made_it_good(later, still):
    failed = run(1, statuses={"n1": "failed", "n2": "failed"})
    made = [run(**each) for each in later]
    found = last_unfinished(PROD)
    expected = made[-1].id if still == "later" else failed.id if still else None
    assert (found and found.id) == expected


def test_of_all_inventories_the_newest():
    run(1, statuses={"n1": "failed"})
    run(0, inventory="/inventory/other")
    other = run(1, inventory="/inventory/third", statuses={"n1": "unreachable"})
    assert last_unfinished().id == other.id


def test_one_run_by_its_id():
    first, second = run(), run()
    assert load("last").id == second.id
    assert load(first.id).id == first.id
    assert load(first.id[-4:]).id == first.id
    with pytest.raises(UsageError, match="Give more of the id"):
        load(first.id[:8])
    with pytest.raises(UsageError, match=f"The last: {second.id}, {first.id}"):
        load("xyz")


def test_no_run_at_all():
    with pytest.raises(UsageError, match="None is"):
        load("last")


def test_journals_of_the_first_version_are_read(state):
    directory = state / "runs/20260101T000000Z-0000"
    directory.mkdir(parents=True)
    old = {"inventory": str(PROD), "hosts": ["n1"], "stages": ["host"], "finished": "2026", "exit_code": 1}
    (directory / "run.json").write_text(json.dumps(old))
    said = {"exit_code": 1, "seconds": 2, "interrupted": False, "error": None, "hosts": {"n1": "failed"}}
    (directory / "events.jsonl").write_text(json.dumps({"type": "run_finished", **said}) + "\n")
    assert last_failed(PROD) == ("n1",)
    assert load("last").who is None
    assert os.path.samefile(last_unfinished().directory, directory)
