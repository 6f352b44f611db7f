"""Kill a run at one of its points, run again, and compare with a run that nothing disturbed.

The property: the run after the kill ends with 0, the state is the undisturbed one, and one more run changes nothing.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from oracle import State, differences

CALLBACKS = Path(__file__).parent / "callbacks"
WHO = ("all", "ansible", "parent")


@dataclass(frozen=True)
class Ran:
    """How a run ended: its exit code, what it changed, which stages it visited, and what it said."""

    code: int
    changes: list[str]
    visited: list[str]
    text: str = ""


class Subject(Protocol):
    """What is crashed: something with a start state, a run, and a state to read."""

    def reset(self) -> None:
        """Back to the start state."""

    def run(self, environment: dict[str, str]) -> Ran:
        """One run; the environment is added to the process's own."""

    def state(self) -> State:
        """What the oracle says."""


@dataclass(frozen=True)
class Point:
    """One place at which a run can be killed; `who` dies there."""

    number: int
    kind: str
    stage: str
    task: str
    who: str

    def __str__(self) -> str:
        return f"point {self.number} ({self.kind} of {self.stage}: {self.task}; {self.who} killed)"

    def environment(self, log: Path) -> dict[str, str]:
        """What makes a run die here."""
        return {**armed(log), "CRASH_AT": str(self.number), "CRASH_WHO": self.who}


@dataclass
class Verdict:
    """What became of one crash."""

    what: str
    task: str
    problems: list[str] = field(default_factory=list)
    reruns: int = 0
    seconds: float = 0.0
    reached: bool = True

    @property
    def outcome(self) -> str:
        if not self.reached and not self.problems:
            return "not reached"  # proves nothing
        return "diverged" if self.problems else "converged"


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its points and the state that it leaves."""

    points: list[Point]
    state: State


def armed(log: Path) -> dict[str, str]:
    """The environment in which Ansible loads the plugin that counts and kills; `log` is begun anew."""
    log.unlink(missing_ok=True)
    return {"ANSIBLE_CALLBACK_PLUGINS": str(CALLBACKS), "ANSIBLE_CALLBACKS_ENABLED": "crash_at", "CRASH_LOG": str(log)}


def reference(subject: Subject, scratch: Path, who: Sequence[str] = WHO) -> Reference:
    """Run undisturbed from the start state, and count; who dies takes turns from point to point."""
    log = scratch / "points.jsonl"
    subject.reset()
    ran = subject.run(armed(log))
    assert ran.code == 0, f"the undisturbed run ended with {ran.code}:\n{ran.text}"
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    points = [
        Point(each["point"], each["kind"], each["stage"], each["task"], who[each["point"] % len(who)]) for each in lines
    ]
    again = subject.run({})
    assert (again.code, again.changes) == (0, []), f"a second undisturbed run changes something:\n{again.text}"
    return Reference(points, subject.state())


def settle(subject: Subject, wanted: State, verdict: Verdict) -> None:
    """The run after a fault, and the one after that: what is wrong goes into the verdict."""
    again = subject.run({})
    verdict.reruns = 1
    if again.code != 0:
        verdict.problems.append(f"the run after it ended with {again.code}: {again.text[-1500:]}")
    verdict.problems += differences(wanted, subject.state())
    idle = subject.run({})
    if idle.code != 0 or idle.changes:
        verdict.problems.append(f"the run after that ended with {idle.code} and changed: {'; '.join(idle.changes)}")
    if idle.visited:
        verdict.problems.append(f"the run after that visited {', '.join(idle.visited)}")


def crash(subject: Subject, wanted: State, point: Point, scratch: Path) -> Verdict:
    """Kill a run from the start state at one point, and see what becomes of it."""
    verdict = Verdict(str(point), f"{point.stage}: {point.task}")
    start = time.monotonic()
    subject.reset()
    killed = subject.run(point.environment(scratch / "killed.jsonl"))
    if killed.code == 0:
        verdict.problems.append("the run that was to be killed ended with 0")
    settle(subject, wanted, verdict)
    verdict.seconds = round(time.monotonic() - start, 1)
    return verdict


def mine(points: Sequence[Any]) -> Sequence[Any]:
    """What this process is to sweep: with CRASH_PART=2/3 every third, from the second on, as two others do the rest."""
    number, parts = map(int, os.environ.get("CRASH_PART", "1/1").split("/"))
    assert 1 <= number <= parts, "CRASH_PART is a part such as 2/3"
    return points[number - 1 :: parts]


def spread(points: Sequence[Any], seed: int) -> Iterator[Any]:
    """All of them, each next one far from those before, from a place that the seed decides: stop at any time."""
    step = max(1, round(len(points) * 0.618))
    while math.gcd(step, len(points)) > 1:
        step += 1
    first = seed % max(1, len(points))
    for number in range(len(points)):
        yield points[(first + number * step) % len(points)]
