"""What a run came to, or has come to so far, made from its events as they pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BAD = ("failed", "unreachable", "held_back")


@dataclass
class Outcome:
    """Per host: `statuses` (at the end of a run), `changes` made, and where it stood last (`stage: task`)."""

    statuses: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    changes: dict[str, int] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    running: set[str] = field(default_factory=set)
    interrupted: bool = False
    error: str | None = None
    seconds: float | None = None

    def add(self, event: Mapping[str, Any]) -> None:
        """Take the next event."""
        kind, host = event.get("type"), str(event.get("host"))
        if kind == "task_started":
            self.last[host] = f"{event['stage']}: {event['task']}"
            self.running.add(host)
        elif kind == "task_finished":
            self._task(host, event)
        elif kind == "host_refused":
            self.statuses[host] = "unreachable" if event["unreachable"] else "failed"
        elif kind == "host_finished":
            self.statuses[host] = str(event["status"])
            self.counts[host] = dict(event["counts"])
        elif kind == "run_finished":
            self.statuses |= event["hosts"]
            self.interrupted, self.error = bool(event["interrupted"]), event["error"]
            self.seconds = float(event["seconds"])

    def document(self) -> dict[str, Any]:
        """As run.json keeps it; where an interrupt cut a host short, it says in which task."""
        return {
            "hosts": {
                name: {
                    "status": status,
                    "changes": self.changes.get(name, 0),
                    "counts": self.counts.get(name, {}),
                    **({"running": self.last[name]} if name in self.running else {}),
                }
                for name, status in self.statuses.items()
            },
            "changes": sum(self.changes.values()),
            "interrupted": self.interrupted,
            "error": self.error,
            "seconds": self.seconds,
        }

    def _task(self, host: str, event: Mapping[str, Any]) -> None:
        self.last[host] = f"{event['stage']}: {event['task']}"
        self.running.discard(host)
        if event["status"] == "changed":
            self.changes[host] = self.changes.get(host, 0) + max(1, len(event["actions"]))
        elif event["status"] in BAD:
            self.statuses[host] = str(event["status"])
