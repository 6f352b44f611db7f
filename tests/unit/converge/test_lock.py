from __future__ import annotations

import os
import subprocess
import sys

import pytest

from provision.converge.lock import locked
from provision.errors import LockedError


def test_a_second_run_is_told_who_holds_the_inventory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with (
        locked(tmp_path),
        pytest.raises(LockedError, match=f"process {os.getpid()}, since") as caught,
        locked(tmp_path),
    ):
        pass
    assert caught.value.exit_code == 75
    with locked(tmp_path), locked(tmp_path / "other"):
        pass


def test_a_holder_that_died_holds_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    script = f"import os; from pathlib import Path; from provision.converge.lock import locked\nwith locked(Path({str(tmp_path)!r})): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    with locked(tmp_path):
        pass
