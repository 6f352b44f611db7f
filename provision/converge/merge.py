"""The events of several runs side by side, told as those of one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from provision.converge.journal import Event, now

OWN = ("run_started", "wave_started", "run_finished")  # of a part: the whole has its own


class Merger:
    """Takes the events of the parts of a run; `emit` gets those of the whole.

    A stage has started once the first part starts it, and has finished once every part is past it.
    """

    def __init__(self, run: str, stages: Sequence[str], emit: Callable[[Event], None]) -> None:
        self.last: dict[str, str] = {}  # the stage in which each host was seen last
        self.told: set[str] = set()  # hosts whose end was told
        self._run, self._stages, self._emit = run, tuple(stages), emit
        self._open: dict[str, float] = {}  # stages that run now, and since when
        self._at: dict[int, float] = {}  # how far each part is; between two stages it is a half

    def begin(self, part: int) -> None:
        """A part is about to start: stages that others are past will start again."""
        self._at[part] = -1

    def end(self, part: int) -> None:
        """A part has ended, however it did."""
        self._at.pop(part, None)
        self._close()

    def event(self, part: int, event: Event) -> None:
        """One event of a part."""
        kind, stage = event["type"], event.get("stage", "")
        if kind == "stage_started":
            self._start(part, stage)
        elif kind == "stage_finished":
            self._at[part] = self._stages.index(stage) + 0.5
            self._close()
        elif kind not in OWN:
            if kind == "task_started":
                self.last[event["host"]] = stage
            elif kind == "host_finished":
                self.told.add(event["host"])
            self._emit({**event, "run": self._run})

    def _start(self, part: int, stage: str) -> None:
        self._at[part] = self._stages.index(stage)
        self._close()
        if stage not in self._open:
            self._open[stage] = time.monotonic()
            self._send("stage_started", stage=stage)

    def _close(self) -> None:
        behind = min(self._at.values(), default=len(self._stages))
        for stage in [stage for stage in self._open if self._stages.index(stage) < behind]:
            self._send("stage_finished", stage=stage, seconds=round(time.monotonic() - self._open.pop(stage), 2))

    def _send(self, kind: str, **fields: object) -> None:
        self._emit({"type": kind, "time": now(), "run": self._run, **fields})
