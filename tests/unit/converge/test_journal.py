from __future__ import annotations

import errno
import getpass
import json
import os
import signal
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from provision.converge import journal as module
from provision.converge.identity import identify
from provision.converge.journal import KEEP_RUNS, STAMP, Journal, is_open, now, prune
from provision.errors import LockedError, ProvisionError

TASK = {"host": "n1", "stage": "host", "task": "Write"}
CHANGED = {"status": "changed", "seconds": 1.0, "actions": ["Wrote a.", "Wrote b."], "changes": [], "message": None}
END = {"exit_code": 0, "seconds": 3.5, "interrupted": False, "error": None, "hosts": {"n1": "changed"}}


def say(kind: str, **fields: object) -> dict[str, object]:
    return {"type": kind, "time": now(), "run": "r", **fields}


def lines(journal: Journal) -> list[dict[str, object]]:
    return [json.loads(line) for line in (journal.directory / "events.jsonl").read_text().splitlines()]


def facts(journal: Journal) -> dict[str, object]:
    return json.loads((journal.directory / "run.json").read_text())


def test_run_json_says_who_ran_what_and_what_came_of_it(state, monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.5 50000 10.0.0.1 22")
    monkeypatch.setattr(sys, "argv", ["provision", "bootstrap", "x"])
    with Journal({"hosts": ["n1"], "limit": None}) as journal:
        begun = facts(journal)
        journal.event(say("task_started", **TASK))
        journal.event(say("task_finished", **TASK, **CHANGED))
        journal.event(say("run_finished", **END))
        journal.finish(0)
    assert (begun["user"], begun["origin"], begun["command"]) == (getpass.getuser(), "10.0.0.5", ["bootstrap", "x"])
    assert (begun["pid"], begun["finished"], begun["outcome"]) == (os.getpid(), None, None)
    ended = facts(journal)
    assert (ended["exit_code"], ended["outcome"]["changes"]) == (0, 2)
    assert ended["outcome"]["hosts"]["n1"] == {"status": "changed", "changes": 2, "counts": {}}
    assert {stat.S_IMODE(path.stat().st_mode) for path in journal.directory.iterdir()} == {0o600}


def test_who_called_sudo_is_the_user(state, monkeypatch):
    monkeypatch.setenv("SUDO_USER", "alice")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert identify().user == "alice"


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (LockedError("held"), 75), (ValueError("oops"), 1)]
)
def test_how_an_exception_ends_a_run(state, error, code):
    with pytest.raises(type(error)), Journal({}) as journal:
        raise error
    assert facts(journal)["exit_code"] == code
    assert facts(journal)["outcome"]["interrupted"] == (code == 130)


def test_each_event_is_there_when_the_process_is_killed(state):
    script = """
import os, signal
from provision.converge.journal import Journal
journal = Journal({})
for number in range(100):
    journal.event({"type": "x", "number": number})
print(journal.directory, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    kept = Path(f"{done.stdout.strip()}/events.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in kept] == list(range(100))


def test_an_event_is_synced_soon_by_itself_and_all_are_at_the_end(state, monkeypatch):
    synced = []
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (synced.append(os.fstat(file).st_size), sync(file)))
    with Journal({}) as journal:
        journal.event(say("x"))
        deadline = time.monotonic() + 30
        while not (synced and synced[-1]) and time.monotonic() < deadline:
            time.sleep(0.002)
        assert synced[-1] == (journal.directory / "events.jsonl").stat().st_size
        journal.event(say("y"))
        journal.finish(0)
        assert synced[-1] == (journal.directory / "events.jsonl").stat().st_size


def test_a_full_disk_spoils_one_line_and_does_not_stop_the_run(state, monkeypatch):
    write, full = os.write, []

    def writes(file: int, data: bytes) -> int:
        if full:
            full.pop()
            write(file, data[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    with Journal({}) as journal:
        journal.event(say("a"))
        monkeypatch.setattr(os, "write", writes)
        full.append(True)
        journal.event(say("b"))
        journal.event(say("c"))
        journal.finish(0)
    assert "No space left on device" in (journal.trouble or "")
    kept = (journal.directory / "events.jsonl").read_text().splitlines()
    assert [json.loads(kept[0])["type"], len(kept[1]), json.loads(kept[2])["type"]] == ["a", 5, "c"]


def test_a_journal_that_cannot_be_begun_is_said_in_words(state):
    state.parent.mkdir()
    state.mkdir()
    (state / "runs").touch()
    with pytest.raises(ProvisionError, match="nothing was begun"):
        Journal({})


def test_secrets_are_masked_in_all_that_is_written(state):
    secret = 'hunter2 "quoted"/x'
    with Journal({"limit": secret}, secrets=[secret, "short"]) as journal:
        journal.event(say("x", host="short", changes=[{"before": f"token: {secret}", secret: 1}]))
        journal.text(f"stdout: {json.dumps(secret)} https://u:hunter2%20%22quoted%22%2Fx@h {secret}")
        journal.finish(1)
    kept = [path.read_text() for path in journal.directory.iterdir()]
    assert not [text for text in kept if "hunter2" in text.replace(f'"{json.dumps(secret)[1:-1]}": 1', "")]
    assert lines(journal)[0]["host"] == "short"
    assert lines(journal)[0]["changes"][0]["before"] == "token: ********"


def test_old_runs_go_and_those_that_still_run_stay(state):
    runs = state / "runs"
    old = datetime.now(UTC) - timedelta(days=400)
    names = [(old + timedelta(days=day)).strftime(STAMP) + "-0000" for day in range(KEEP_RUNS + 3)]
    for name in names:
        (runs / name).mkdir(parents=True)
    held = Journal({})
    held.directory.rename(runs / names[0])
    (runs / "notes").mkdir()
    assert is_open(runs / names[0])
    prune(runs)
    left = sorted(path.name for path in runs.iterdir())
    assert names[0] in left
    assert "notes" in left
    assert not {names[1], names[2]} & set(left)
    assert len(left) == KEEP_RUNS + 2
    (runs / names[0]).rename(held.directory)
    with held:
        pass
    assert not is_open(held.directory)


def test_what_ansible_left_behind_in_a_killed_run_goes(state):
    living, dead = Journal({}), Journal({})
    for journal in (living, dead):
        (journal.directory / "runner/artifacts").mkdir(parents=True)
    with dead:
        pass
    prune(state / "runs")
    assert (living.directory / "runner/artifacts").exists()
    assert not (dead.directory / "runner").exists()
    assert (dead.directory / "events.jsonl").exists()
    with living:
        pass


def test_young_runs_stay_however_many(state, monkeypatch):
    monkeypatch.setattr(module, "KEEP_RUNS", 1)
    for _ in range(4):
        with Journal({}):
            pass
    assert len(list((state / "runs").iterdir())) == 4
