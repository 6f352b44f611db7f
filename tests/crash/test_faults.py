"""Faults of every other kind, kills followed by another inventory, kills in pairs, and the work of a controller that is gone."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from faults import FAULTS, PROGRAMS, overlapping, overtaken
from host_under_test import INVENTORY, HostUnderTest
from report import Budget
from sweep import Point, Reference, Verdict, mine, settle, spread

Tell = Callable[[str, Verdict], None]
PAIRS = int(os.environ.get("CRASH_PAIRS", "5"))
OTHER = (
    "swap_size: 96M\ngpu_locked_clocks: { 5: 1200 }\nhost_extra_sysctls: { vm.swappiness: 10 }\nsite_http_proxy: ''\n"
)


@dataclass
class Case:
    """One thing that goes wrong with a run of the bare host; `begin` does it, and tells what is wrong with how it went."""

    area: str
    what: str
    begin: Callable[[], list[str]]


class Disturbed:
    """Every case there is, and the one way in which all are judged."""

    def __init__(self, subject: HostUnderTest, undisturbed: Reference, seed: int, scratch: Path) -> None:
        self.subject, self.points, self.state = subject, undisturbed.points, undisturbed.state
        self.choose, self.log = random.Random(seed), scratch / "killed.jsonl"  # noqa: S311
        self.other = None

    def cases(self) -> list[Case]:
        found = [Case("faults", f"{fault.__name__}: {fault.__doc__}", partial(fault, self.subject)) for fault in FAULTS]
        found += [
            Case("orphans", f"killed while {name} works, run again at once", partial(overtaken, self.subject, name))
            for name in PROGRAMS
        ]
        for _ in range(PAIRS):
            first, second = self.choose.choice(self.points), self.choose.choice(self.points)
            what = f"{first}, then {second.number} of the next run"
            found.append(Case("pairs of faults", what, partial(self.killed, first, second)))
            found.append(Case("kills before another inventory", str(first), partial(self.killed_and_changed, first)))
        return found

    def killed(self, *points: Point) -> list[str]:
        """One run after another, each killed at its point; one that ends before its point comes has done its work."""
        for point in points:
            self.subject.run(point.environment(self.log))
        return []

    def killed_and_changed(self, point: Point) -> list[str]:
        """What the killed run wanted is no longer wanted: the host must become what the inventory says now."""
        self.killed(point)
        self.subject.site.variables("host_vars/node-1.yml", OTHER)
        return []

    def wanted(self, case: Case) -> dict[str, object]:
        """The state of an undisturbed run of the inventory that the case ends with."""
        if case.area != "kills before another inventory":
            return self.state
        if self.other is None:
            self.subject.site.variables("host_vars/node-1.yml", OTHER)
            self.subject.reset()
            assert self.subject.run({}).code == 0
            self.other = self.subject.state()
        return self.other

    def judge(self, case: Case) -> Verdict:
        wanted = self.wanted(case)
        verdict, start = Verdict(case.what, case.area), time.monotonic()
        self.subject.site.variables("host_vars/node-1.yml", INVENTORY["host_vars/node-1.yml"])
        self.subject.reset()
        verdict.problems += case.begin()
        settle(self.subject, wanted, verdict)
        self.subject.site.variables("host_vars/node-1.yml", INVENTORY["host_vars/node-1.yml"])
        verdict.seconds = round(time.monotonic() - start, 1)
        return verdict


def test_every_fault(
    subject: HostUnderTest, undisturbed: Reference, budget: Budget, seed: int, tell: Tell, scratch: Path
) -> None:
    disturbed, deadline, diverged = Disturbed(subject, undisturbed, seed, scratch), budget.share(0.1), []
    for case in spread(mine(list(disturbed.cases())), seed):
        if deadline.passed():
            break
        verdict = disturbed.judge(case)
        tell(case.area, verdict)
        diverged += [verdict] if verdict.problems else []
    assert diverged == []


def test_marks_that_overlap_are_seen() -> None:
    assert overlapping(["begin 1", "end 1", "begin 2", "end 2"]) == []
    assert overlapping(["begin 1", "begin 2", "end 1", "end 2"])
    assert overlapping(["begin 1"])


def test_a_point_says_who_dies_where() -> None:
    assert str(Point(4, "start", "swap", "Converge", "parent")) == "point 4 (start of swap: Converge; parent killed)"
