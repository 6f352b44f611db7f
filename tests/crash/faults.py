"""Faults other than a killed controller: each disturbs a run of the bare host, and returns what is wrong with how it went.

What the run after it makes of the host is judged elsewhere, the same way for all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from host_under_test import HOST, INVENTORY, HostUnderTest, await_task

# As events name it: the longest step of a bare host, which apt and dpkg take.
LONG = "Install packages"
CUT = "for pid in $(pgrep -x sshd); do [ $(ps -o ppid= $pid) -eq 1 ] || kill -KILL $pid; done"


def ended(process: subprocess.Popen[str], codes: tuple[int, ...], seconds: float = 400) -> list[str]:
    """Wait for a disturbed run; it must end in words, with one of these codes."""
    out, err = process.communicate(timeout=seconds)
    problems = (
        []
        if process.returncode in codes
        else [f"the disturbed run ended with {process.returncode}: {(out + err)[-1500:]}"]
    )
    return problems + (
        ["the disturbed run showed a traceback"] if "Traceback (most recent call last)" in out + err else []
    )


def connection_cut(subject: HostUnderTest) -> list[str]:
    """Every SSH session of the host is killed while a module works."""
    run = subject.begin()
    await_task(run, LONG)
    time.sleep(2)
    subject.sh(CUT)
    return ended(run, (1, 3))


def cable_pulled(subject: HostUnderTest) -> list[str]:
    """No packet for ten seconds: shorter than any timeout, so the run must get over it."""
    run = subject.begin()
    await_task(run, LONG)
    subject.site.break_(HOST, "link-down")
    time.sleep(10)
    subject.site.mend(HOST, "link-down")
    return ended(run, (0, 1, 3))


def disk_full(subject: HostUnderTest) -> list[str]:
    """Not a byte is left from before the run on."""
    subject.site.break_(HOST, "disk-full")
    problems = ended(subject.begin(), (1,))
    subject.site.mend(HOST, "disk-full")
    return problems


def package_lock_let_go(subject: HostUnderTest) -> list[str]:
    """Another process holds apt's lock, and lets it go: the run waits and goes on by itself."""
    subject.site.break_(HOST, "apt-locked")
    run = subject.begin()
    await_task(run, LONG)
    time.sleep(6)
    subject.site.mend(HOST, "apt-locked")
    return ended(run, (0,))


def package_lock_kept(subject: HostUnderTest) -> list[str]:
    """Another process holds apt's lock for longer than the run waits: it ends and names the holder."""
    subject.site.variables("host_vars/node-1.yml", INVENTORY["host_vars/node-1.yml"] + "host_apt_lock_timeout: 3\n")
    subject.site.break_(HOST, "apt-locked")
    run = subject.bootstrap(code=None)
    subject.site.mend(HOST, "apt-locked")
    subject.site.variables("host_vars/node-1.yml", INVENTORY["host_vars/node-1.yml"])
    fine = run.code == 1 and "unattended-upgr" in run.text
    return [] if fine else [f"it ended with {run.code} and does not name who holds the lock: {run.text[-800:]}"]


def host_reset(subject: HostUnderTest) -> list[str]:
    """The power is cut while dpkg is at work, and comes back."""
    run = subject.begin()
    await_task(run, LONG)
    time.sleep(4)
    subject.host.power_off()
    subject.on()
    return ended(run, (1, 3))


def clock_jump(subject: HostUnderTest) -> list[str]:
    """The clock leaps a quarter of an hour ahead in mid-run, and back before the next."""
    run = subject.begin()
    await_task(run, LONG)
    subject.site.break_(HOST, "clock-skew")
    problems = ended(run, (0, 1, 3))
    subject.site.mend(HOST, "clock-skew")
    subject.sh("rmdir /etc/systemd/system/ssh.service.d")  # where the lab told sshd of the wrong clock
    return problems


def two_at_once(subject: HostUnderTest) -> list[str]:
    """A second run on the same inventory ends with 75 and names the first; the first is not disturbed."""
    run = subject.begin()
    await_task(run, LONG)
    second = subject.bootstrap(code=None)
    said = second.code == 75 and str(run.pid) in second.text
    return ended(run, (0,)) + ([] if said else [f"the second ended with {second.code}: {second.text[-600:]}"])


def limit_first(subject: HostUnderTest) -> list[str]:
    """Some hosts first, all after."""
    run = subject.bootstrap("--limit", HOST, code=None)
    return [] if run.code == 0 else [f"--limit ended with {run.code}: {run.text[-600:]}"]


def stopped_in_order(subject: HostUnderTest) -> list[str]:
    """Ctrl-C once: the task at hand is finished, and the run ends with 130."""
    run = subject.begin()
    await_task(run, LONG)
    time.sleep(1)
    os.kill(run.pid, signal.SIGINT)
    return ended(run, (130,))


def kill_with_descendants(process: subprocess.Popen[str]) -> None:
    """Nobody of a controller's processes gets to say a word."""
    victims = [process.pid]
    for pid in victims:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            victims += map(int, children.read_text(encoding="ascii").split())
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()


# Long programs, made longer, that write down when they begin and when they end.
SLOW = """#!/bin/sh
echo "begin $$" >> /run/marks
sleep 4
/usr/{real} "$@"
code=$?
echo "end $$" >> /run/marks
exit $code
"""
PROGRAMS = {"apt-get": "bin/apt-get", "mkswap": "sbin/mkswap"}


def overtaken(subject: HostUnderTest, name: str) -> list[str]:
    """The controller is killed in a long step, and the command given again at once: the two must never be at work together."""
    for each, real in PROGRAMS.items():
        subject.host.run(["tee", f"/usr/local/sbin/{each}"], input=SLOW.format(real=real))
        subject.sh(f"chmod 755 /usr/local/sbin/{each}")
    first = subject.begin()
    running = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"
    while f"/usr/local/sbin/{name}" not in subject.sh(running, check=False):
        assert first.poll() is None, f"the run ended before {name} was started"
        time.sleep(0.1)
    kill_with_descendants(first)
    again = subject.bootstrap(code=None)
    problems = [] if again.code == 0 else [f"the run after it ended with {again.code}: {again.text[-1200:]}"]
    problems += overlapping(subject.sh("cat /run/marks").splitlines())
    subject.sh(f"rm /run/marks {' '.join(f'/usr/local/sbin/{each}' for each in PROGRAMS)}")
    return problems


def overlapping(marks: list[str]) -> list[str]:
    """What is wrong with a list of begins and ends: two at work at once, or one that never ended."""
    at_work: list[str] = []
    for mark in marks:
        word, pid = mark.split()
        if word == "end":
            at_work.remove(pid)
        elif at_work:
            return [f"process {pid} began while {at_work[0]} was at work: {marks}"]
        else:
            at_work.append(pid)
    return [f"{at_work} never ended: {marks}"] if at_work else []


FAULTS: list[Callable[[HostUnderTest], list[str]]] = [
    connection_cut,
    cable_pulled,
    disk_full,
    package_lock_let_go,
    package_lock_kept,
    host_reset,
    clock_jump,
    two_at_once,
    limit_first,
    stopped_in_order,
]
