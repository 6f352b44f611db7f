"""Leases on hosts that are directories here: the holder is the real one, run without SSH."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from provision.converge import lease, lease_session
from provision.converge.identity import Holder, holder, identify
from provision.converge.lease import Lease
from provision.converge.lease_session import HOLDER
from provision.errors import LockedError

OTHER = Holder("other-run", identify(), "2026-11-22T06:00:00Z", "provision bootstrap x")


def command(path: Path, limit: int = 60) -> list[str]:
    return [sys.executable, "-c", HOLDER, str(path), str(limit)]


def take(path: Path, mine: Holder = OTHER, limit: int = 60) -> subprocess.Popen[str]:
    """Another run's holder; it holds when this returns."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command(path, limit), stdin=pipe, stdout=pipe, text=True, bufsize=1)
    process.stdin.write(mine.text())
    assert '"held"' in process.stdout.readline()
    return process


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """Hosts by name; each has its directory, and does not answer while that has a file `down`."""
    monkeypatch.setattr(lease, "RETRY_S", 0.2)
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    monkeypatch.setattr(lease, "LOOK_MS", 50)

    def opened(host):
        place = tmp_path / host.address
        if (place / "down").exists():
            raise OSError("no route")
        return lease_session._Program(["/bin/sh", "-c", "read -r _; exec " + shlex.join(command(place / "lease"))])

    monkeypatch.setattr(lease_session, "_open", opened)

    def make(*names: str, **variables: object):
        for name in names:
            (tmp_path / name).mkdir(exist_ok=True)
        return [SimpleNamespace(name=name, address=name, variables=variables) for name in names]

    return make


def broken(held: Lease, name: str) -> None:
    """The connection to a host breaks."""
    held._sessions[name]._pipe._program.kill()


def test_a_second_run_is_refused_by_name_and_leaves_the_other_hosts(hosts, tmp_path):
    with Lease(hosts("h1", "h2"), "run-1"):
        with pytest.raises(LockedError) as caught, Lease(hosts("h0", "h1", "h2"), "run-2"):
            pass
        take(tmp_path / "h0/lease").kill()
    assert caught.value.exit_code == 75
    said = str(caught.value)
    assert f"h1, h2 are being changed by run run-1 of {identify()}, since " in said
    assert "ends by itself within 60 s" in said
    with Lease(hosts("h1", "h2"), "run-2") as held:
        assert held.took_over == {}


def test_many_hosts_and_holders_are_told_in_few_words(hosts, tmp_path):
    process = take(tmp_path / "h1/lease")
    with (
        Lease(hosts("a", "b", "c", "d", "e", "f"), "run-1"),
        pytest.raises(LockedError) as caught,
        Lease(hosts("a", "b", "c", "d", "e", "f", "h1"), "run-2"),
    ):
        pass
    process.kill()
    first, second, _ = str(caught.value).splitlines()
    assert first.startswith("a, b, c, d and 2 more are being changed by run run-1 of ")
    assert second.startswith("h1 is being changed by run other-run of ")


def test_what_a_dead_run_left_is_taken_over(hosts, tmp_path):
    process = take(tmp_path / "h1/lease")
    process.stdin.close()  # its controller is gone
    assert process.wait(30) == 0
    with Lease(hosts("h1", "h2"), "run-1") as held:
        assert held.took_over == {"h1": OTHER}


def test_a_run_that_was_killed_just_now_does_not_stand_in_the_way(hosts, tmp_path):
    process = take(tmp_path / "h1/lease")
    later = subprocess.Popen(["sh", "-c", f"sleep 0.7; kill -9 {process.pid}"])
    with Lease(hosts("h1"), "run-1") as held:
        assert held.took_over == {"h1": OTHER}
    later.wait()


def test_without_beats_a_holder_ends_and_with_them_it_does_not(tmp_path):
    path = tmp_path / "lease"
    process = take(path, limit=5)
    for _ in range(55):  # longer than the limit
        time.sleep(0.1)
        process.stdin.write("beat\n")
        assert '"beat"' in process.stdout.readline()
    assert process.wait(30) == -signal.SIGALRM
    assert holder(path.read_text()) == OTHER


def test_a_connection_that_breaks_is_made_again(hosts):
    with Lease(hosts("h1", "h2"), "run-1") as held:
        first = held._sessions["h1"]
        broken(held, "h1")
        wait_for(lambda: held._sessions.get("h1") not in (None, first))
        assert (held.missing, held.lost) == ({}, {})
        with pytest.raises(LockedError), Lease(hosts("h1"), "run-2"):
            pass


def test_a_host_that_falls_silent_is_taken_again(hosts, monkeypatch):
    with Lease(hosts("h1"), "run-1") as held:
        first = held._sessions["h1"]
        first.beat = lambda: None
        monkeypatch.setattr(lease, "LIMIT_S", 0.5)
        wait_for(lambda: held._sessions.get("h1") not in (None, first))
        assert held.lost == {}


@pytest.mark.parametrize("still", [True, False])
def test_a_host_that_another_run_takes_meanwhile_is_lost(hosts, tmp_path, still):
    with Lease(hosts("h1"), "run-1") as held:
        (tmp_path / "h1/down").touch()
        broken(held, "h1")
        wait_for(lambda: "h1" in held.missing)
        other = take(tmp_path / "h1/lease")
        if not still:
            other.communicate("end\n")
        (tmp_path / "h1/down").unlink()
        wait_for(lambda: held.lost)
        other.kill()
    said = f"is being changed by run other-run of {identify()}" if still else "was changed by another run"
    assert said in held.lost["h1"]


def test_a_reboot_forgets_leases_and_loses_none(hosts, tmp_path):
    with Lease(hosts("h1"), "run-1") as held:
        (tmp_path / "h1/down").touch()
        held._boots["h1"] = "the boot before"
        broken(held, "h1")
        wait_for(lambda: "h1" in held.missing)
        (tmp_path / "h1/lease").unlink()
        (tmp_path / "h1/down").unlink()
        wait_for(lambda: "h1" in held._sessions)
        time.sleep(0.3)
        assert (held.missing, held.lost) == ({}, {})


def test_a_host_that_does_not_answer_is_taken_when_it_does(hosts, tmp_path):
    alike = hosts("h1", "h2")
    (tmp_path / "h1/down").touch()
    with Lease(alike, "run-1") as held:
        assert held.missing == {"h1": "no route"}
        (tmp_path / "h1/down").unlink()
        wait_for(lambda: "h1" in held._sessions)
        assert (held.missing, held.lost) == ({}, {})


def test_two_names_of_one_host_are_no_conflict(hosts):
    first, second = hosts("h1", "h2")
    second.address = "h1"
    with Lease([first, second], "run-1") as held:
        assert len(held._sessions) == 1


def test_the_controller_itself_needs_none(hosts):
    with Lease(hosts("h1", ansible_connection="local"), "run-1") as held:
        assert held._sessions == {}


def test_nothing_of_it_is_left(hosts):
    with Lease(hosts("h1", "h2"), "run-1") as held:
        processes = [session._pipe._program for session in held._sessions.values()]
    assert [process.returncode for process in processes] == [0, 0]
