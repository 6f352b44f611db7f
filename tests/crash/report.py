"""The account of a crash run: every point and fault in `build/crash-matrix.json`, and the counts."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

from sweep import Verdict

MATRIX = Path(__file__).resolve().parents[2] / "build/crash-matrix.json"


class Report:
    """Grows by one verdict at a time, and is on disk after each: the suite may be stopped, too."""

    def __init__(self, seed: int) -> None:
        self.rows: list[dict[str, object]] = []
        self.seed = seed

    def add(self, area: str, verdict: Verdict) -> None:
        row = {
            "area": area,
            "point": verdict.what,
            "task": verdict.task,
            "outcome": verdict.outcome,
            "reruns": verdict.reruns,
            "seconds": verdict.seconds,
            "problems": verdict.problems,
        }
        self.rows.append(row)
        MATRIX.parent.mkdir(exist_ok=True)
        new = MATRIX.with_suffix(".new")
        new.write_text(json.dumps({"seed": self.seed, "rows": self.rows}, indent=1) + "\n", encoding="utf-8")
        new.replace(MATRIX)

    def summary(self) -> str:
        """One line: how much of each was done, and how many differences were found."""
        done = Counter(str(row["area"]) for row in self.rows if row["outcome"] != "not reached")
        wrong = sum(row["outcome"] == "diverged" for row in self.rows)
        counts = " · ".join(f"{number} {area}" for area, number in done.items())
        return f"crash suite: {counts or 'nothing run'} · differences: {wrong} · seed {self.seed} · {MATRIX}"


class Budget:
    """Seconds to spend, of which each part of the suite takes a share; none means that all is run."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    @property
    def bounded(self) -> bool:
        return self.seconds > 0

    def share(self, part: float) -> Deadline:
        """A deadline that many parts of the whole from now."""
        return Deadline(time.monotonic() + self.seconds * part if self.bounded else float("inf"))


class Deadline:
    """When a sweep stops; it always does at least one."""

    def __init__(self, at: float) -> None:
        self.at, self.done = at, 0

    def passed(self) -> bool:
        """Asked before each point."""
        self.done += 1
        return self.done > 1 and time.monotonic() > self.at
