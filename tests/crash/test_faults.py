"""Faults of every other kind, kills followed by another inventory, kills in pairs, and the work of a controller that is gone."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from faults import FAULTS, kill_with_descendants
from host_under_test import INVENTORY, HostUnderTest, ran
from report import Budget
from sweep import Point, Reference, Verdict, settle, spread

Tell = Callable[[str, Verdict], None]
PAIRS = int(os.environ.get("CRASH_PAIRS", "5"))
OTHER = "swap_size: 96M\ngpu_locked_clocks: { 5: 1200 }\nhost_extra_sysctls: { vm.swappiness: 10 }\nsite_no_proxy: [example.org]\n"
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


def test_every_fault(subject: HostUnderTest, undisturbed: Reference, budget: Budget, seed: int, tell: Tell) -> None:
    deadline, diverged = budget.share(0.1), []
    for fault in spread(FAULTS, seed):
        if deadline.passed():
            break
        verdict, start = Verdict(f"{fault.__name__}: {fault.__doc__}", fault.__name__), time.monotonic()
        subject.reset()
        verdict.problems += fault(subject)
        settle(subject, undisturbed.state, verdict)
        verdict.seconds = round(time.monotonic() - start, 1)
        tell("faults", verdict)
        diverged += [verdict] if verdict.problems else []
    assert diverged == []


def test_pairs_of_kills(
    subject: HostUnderTest, undisturbed: Reference, budget: Budget, seed: int, tell: Tell, scratch: Path
) -> None:
    """A run is killed, and the run after it, too: at two points that the seed chooses."""
    choose, deadline, diverged = random.Random(seed), budget.share(0.05), []  # noqa: S311
    for _ in range(PAIRS):
        if deadline.passed():
            break
        first, second = choose.choice(undisturbed.points), choose.choice(undisturbed.points)
        verdict, start = Verdict(f"{first}, then {second.number} of the next run", "pair"), time.monotonic()
        subject.reset()
        subject.run(first.environment(scratch / "killed.jsonl"))
        # The second run does less than the first: it may end before its point comes, and then it has done its work.
        subject.run(second.environment(scratch / "killed.jsonl"))
        settle(subject, undisturbed.state, verdict)
        verdict.seconds = round(time.monotonic() - start, 1)
        tell("pairs of faults", verdict)
        diverged += [verdict] if verdict.problems else []
    assert diverged == []


def test_a_kill_and_then_another_inventory(
    subject: HostUnderTest, undisturbed: Reference, budget: Budget, seed: int, tell: Tell, scratch: Path
) -> None:
    """What the killed run wanted is no longer wanted: the host must become what the new inventory says, with no trace of the old."""
    subject.site.variables("host_vars/node-1.yml", OTHER)
    subject.reset()
    assert subject.run({}).code == 0
    wanted, deadline, diverged = subject.state(), budget.share(0.05), []
    points = [point for point in undisturbed.points if point.kind != "start"]
    for point in list(spread(points, seed))[: PAIRS + 1]:
        if deadline.passed():
            break
        verdict, start = Verdict(f"{point}, then another inventory", point.task), time.monotonic()
        subject.site.variables("host_vars/node-1.yml", INVENTORY["host_vars/node-1.yml"])
        subject.reset()
        subject.run(point.environment(scratch / "killed.jsonl"))
        subject.site.variables("host_vars/node-1.yml", OTHER)
        settle(subject, wanted, verdict)
        verdict.seconds = round(time.monotonic() - start, 1)
        tell("kills before another inventory", verdict)
        diverged += [verdict] if verdict.problems else []
    subject.site.variables("host_vars/node-1.yml", INVENTORY["host_vars/node-1.yml"])
    assert diverged == []


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


def test_the_work_of_a_dead_controller_and_the_next_run_never_overlap(
    subject: HostUnderTest, undisturbed: Reference, budget: Budget, tell: Tell
) -> None:
    """The controller is killed in a long step, and the command given again at once."""
    diverged = []
    for name in list(PROGRAMS)[: 1 if budget.bounded else None]:
        verdict, start = Verdict(f"killed while {name} works, run again at once", name), time.monotonic()
        subject.reset()
        for each, real in PROGRAMS.items():
            subject.host.run(["tee", f"/usr/local/sbin/{each}"], input=SLOW.format(real=real))
            subject.sh(f"chmod 755 /usr/local/sbin/{each}")
        first = subject.begin()
        while f"/usr/local/sbin/{name}" not in subject.sh(
            "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '", check=False
        ):
            assert first.poll() is None, f"the run ended before {name} was started"
            time.sleep(0.1)
        kill_with_descendants(first)
        again = ran(subject.bootstrap(code=None))
        if again.code:
            verdict.problems.append(f"the run after it ended with {again.code}: {again.text[-1200:]}")
        marks = subject.sh("cat /run/marks").splitlines()
        verdict.problems += overlapping(marks)
        subject.sh(f"rm /run/marks {' '.join(f'/usr/local/sbin/{each}' for each in PROGRAMS)}")
        settle(subject, undisturbed.state, verdict)
        verdict.seconds = round(time.monotonic() - start, 1)
        tell("orphans", verdict)
        diverged += [verdict] if verdict.problems else []
    assert diverged == []


def test_marks_that_overlap_are_seen() -> None:
    assert overlapping(["begin 1", "end 1", "begin 2", "end 2"]) == []
    assert overlapping(["begin 1", "begin 2", "end 1", "end 2"])
    assert overlapping(["begin 1"])


def test_a_point_says_who_dies_where() -> None:
    assert str(Point(4, "start", "swap", "Converge", "parent")) == "point 4 (start of swap: Converge; parent killed)"
