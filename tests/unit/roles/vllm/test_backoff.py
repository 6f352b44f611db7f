"""How long vLLM's unit waits before it starts again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ROLES, imported

PROGRAM = ROLES / "vllm/files/backoff.py"
backoff = imported(PROGRAM)


def pauses(starts):
    """The pauses before starts, each as systemd's count of restarts and seconds since the last one."""
    last, now, found = None, 1000.0, []
    for restarts, seconds in starts:
        now += seconds
        last = backoff.following(last, restarts, now)
        found.append(backoff.pause_s(last))
    return found


def test_each_start_in_vain_doubles_the_pause_up_to_two_minutes():
    starts = [(0, 0), *((number, 30) for number in range(1, 8))]
    assert pauses(starts) == [0, 0, 10, 30, 70, 110, 110, 110]  # beyond systemd's 10 s


def test_whoever_starts_the_unit_waits_for_nothing_and_begins_the_count_anew():
    by_hand = (0, 30)
    assert pauses([(0, 0), (1, 30), (2, 30), (3, 30), by_hand, (1, 30), (2, 30)]) == [0, 0, 10, 30, 0, 0, 10]


def test_a_start_by_hand_that_systemd_does_not_count_waits_for_nothing():
    assert pauses([(0, 0), (1, 30), (2, 30), (2, 30), (3, 30)]) == [0, 0, 10, 0, 0]


def test_an_engine_that_lasted_was_not_started_in_vain():
    assert pauses([(0, 0), (1, 30), (2, 30), (3, 601), (4, 30), (5, 30)]) == [0, 0, 10, 0, 0, 10]


def test_a_start_after_a_controller_that_is_older_counts_from_there():
    assert pauses([(7, 0), (8, 30)]) == [0, 10]


class Host:
    """What systemd says there, and the program."""

    def __init__(self, folder: Path):
        self.state, self.folder = folder / "state.json", folder

    def run(self, restarts: str) -> subprocess.CompletedProcess[str]:
        systemctl = self.folder / "systemctl"
        systemctl.write_text(f'#!/bin/sh\n[ "$4" = vllm.service ] || exit 9\necho {restarts}\n')
        systemctl.chmod(0o755)
        argv = [sys.executable, "-I", "-S", PROGRAM, "vllm.service", "--state", self.state]
        environ = {"PATH": f"{self.folder}:{os.environ['PATH']}"}
        return subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)


@pytest.mark.parametrize("said", ["", "[1, 2", '{"restarts": 1}', "[1, null, 3]"])
def test_what_is_remembered_unreadably_is_not_there(tmp_path, said):
    host = Host(tmp_path)
    host.state.write_text(said)
    done = host.run("1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(host.state.read_text())[:2] == [1, 1]


def test_it_says_for_how_long_it_waits_and_counts_from_the_end_of_that(tmp_path, monkeypatch, capsys):
    state, clock = tmp_path / "state.json", [1000.0]
    state.write_text(json.dumps([1, 1, 990.0]))
    monkeypatch.setattr(backoff, "restarts_of", lambda unit: {"vllm.service": 2}[unit])
    monkeypatch.setattr(backoff.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(backoff.time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    monkeypatch.setattr(sys, "argv", ["provision-backoff", "vllm.service", "--state", str(state)])
    backoff.main()
    assert capsys.readouterr().out == "Ended soon after each of its last 2 starts. The next one is in 10 s.\n"
    assert json.loads(state.read_text()) == [2, 2, 1010.0]
