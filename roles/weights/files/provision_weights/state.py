"""How far this host is, in a file that its neighbours, the module and `provision weights` read."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from provision_weights.spec import Spec

BEAT_S = 0.5
WINDOW_S = 10.0  # over which a rate is measured


def write_json(path: Path, value: object) -> None:
    """Put a whole file in place, for all to read."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        os.fchmod(file.fileno(), 0o644)
    os.replace(new, path)


class State:
    """What is known of this host's transfer, written twice a second while it goes on."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.path = spec, Path(spec.state, "state.json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.started, self.beat = time.time(), 0
        self.sizes: dict[str, int] = {}  # of the files that grow
        self.verified: dict[str, int] = {}
        self.total = 0
        self.sources: dict[str, int] = {}  # bytes by where they came from
        self.complaints: list[str] = []
        self.reasons: dict[str, str] = {}  # why a file waits
        self.flags: dict[str, Any] = {"uplink": False, "may_uplink": spec.uplink, "trouble": ""}
        self.end: dict[str, Any] = {}
        self._past: list[tuple[float, int]] = []
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        self.write()
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a full disk, which may be emptied: the next beat says more
                self.write()

    def got(self, source: str, count: int) -> None:
        with self._lock:
            self.sources[source] = self.sources.get(source, 0) + count

    def complain(self, sentence: str) -> None:
        """Keep what an operator should know although the transfer goes on."""
        with self._lock:
            print(sentence, flush=True)
            self.complaints = [*self.complaints, sentence][-20:]

    def finish(self, **end: object) -> None:
        """Say how it ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.end = end
        self.write()

    def told(self) -> dict[str, Any]:
        with self._lock:
            self.beat += 1
            now = sum(self.sizes.values()) + sum(self.verified.values())
            clock = time.monotonic()
            self._past = [past for past in self._past if past[0] > clock - WINDOW_S] + [
                (clock, sum(self.sources.values()))
            ]
            (then, before), (_, after) = self._past[0], self._past[-1]
            rate = (after - before) / (clock - then) if clock > then else 0
            return {
                "format": 1,
                "repo": self.spec.repo,
                "commit": self.spec.commit,
                "started": self.started,
                "time": time.time(),
                "beat": self.beat,
                "bytes": now,
                "total": self.total,
                "rate": round(rate),
                "eta": round((self.total - now) / rate) if rate > 0 else None,
                "sizes": dict(self.sizes),
                "verified": sorted(self.verified),
                "sources": dict(self.sources),
                "reason": next(iter(self.reasons.values()), ""),
                "complaints": list(self.complaints),
                "done": False,
                "failed": "",
                **self.flags,
                **self.end,
            }

    def write(self) -> None:
        with self._writing:  # one at a time: all go through the same new file
            write_json(self.path, self.told())
