from __future__ import annotations

import os
import subprocess
import sys

import pytest

from provision.converge.history import taken_over
from provision.converge.journal import Journal
from provision.converge.lock import locked
from provision.errors import LockedError

DIES = """
import os
from pathlib import Path
from provision.converge.journal import Journal
from provision.converge.lock import locked
with locked(Path({!r})) as lock:
    journal = Journal({{}})
    lock.name(journal.id)
    journal.event({{"type": "x"}})
    os._exit(9)
"""


@pytest.fixture(autouse=True)
def _from_afar(state, monkeypatch):
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.5 50000 10.0.0.1 22")
    monkeypatch.setattr(sys, "argv", ["provision", "bootstrap", "inventory/prod"])


def test_a_second_run_is_told_who_holds_the_inventory(tmp_path):
    with locked(tmp_path) as lock:
        lock.name("20261122T0615-ab12")
        with pytest.raises(LockedError) as caught, locked(tmp_path):
            pass
    assert caught.value.exit_code == 75
    said = str(caught.value)
    for part in (
        "by run 20261122T0615-ab12 of ",
        f"@{os.uname().nodename} (process {os.getpid()}, from 10.0.0.5), since ",
        "provision bootstrap inventory/prod\n",
        "provision show 20261122T0615-ab12",
    ):
        assert part in said
    with locked(tmp_path) as lock, locked(tmp_path / "other"):
        assert lock.took_over is None


def test_a_run_that_failed_leaves_nothing_to_take_over(tmp_path):
    with pytest.raises(ValueError, match="oops"), locked(tmp_path):
        raise ValueError("oops")
    with locked(tmp_path) as lock:
        assert lock.took_over is None


def test_a_holder_that_died_holds_nothing_and_is_known(tmp_path, state):
    assert subprocess.run([sys.executable, "-c", DIES.format(str(tmp_path))], check=False).returncode == 9
    (died,) = (state / "runs").iterdir()
    with locked(tmp_path) as lock:
        found = lock.took_over
        assert found is not None
        said = taken_over(found)
    assert (said["of_run"], said["origin"]) == (died.name, "10.0.0.5")
    assert said["died"] >= said["since"][:19]
    with locked(tmp_path) as lock:
        assert lock.took_over is None


def test_text_that_is_torn_is_nobodys(tmp_path, state):
    with locked(tmp_path):
        (path,) = (state / "locks").iterdir()
        path.write_text('{"run": "2')
        with pytest.raises(LockedError, match="left no name"), locked(tmp_path):
            pass
    path.write_text('{"run": "2')
    with locked(tmp_path) as lock, Journal({}):
        assert lock.took_over is None
