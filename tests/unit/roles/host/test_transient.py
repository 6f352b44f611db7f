"""What a transient unit said, though journald is late."""

from __future__ import annotations

import subprocess
from types import SimpleNamespace

from ansible.module_utils import provision_transient as transient


def test_the_journal_is_read_until_it_has_the_last_line(monkeypatch):
    late = iter(["Unpacking x\n", "Unpacking x\nError! It failed.\nEnded with 100.\nx.service: Failed.\n"])
    ran = []

    def run(argv, check=True):
        ran.append(argv[1])
        return SimpleNamespace(out=next(late) if argv[1] == "-u" else "", rc=0)

    monkeypatch.setattr(transient, "run", run)
    monkeypatch.setattr(transient.time, "sleep", lambda _s: None)
    assert transient.journal("x", 0) == "Unpacking x\nError! It failed.\nx.service: Failed."
    assert ran == ["--sync", "-u"] * 2


def test_a_unit_that_was_killed_has_no_last_line(monkeypatch):
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr(transient, "run", lambda argv, check=True: SimpleNamespace(out="Half a", rc=0))
    monkeypatch.setattr(transient.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(transient.time, "sleep", lambda _s: None)
    assert transient.journal("x", 0) == "Half a"


def test_the_shell_says_last_how_the_script_ended():
    done = subprocess.run(
        ["/bin/sh", "-c", transient.SHELL, "x", "echo first; (exit 7); echo never"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, "first\nEnded with 7.\n")
