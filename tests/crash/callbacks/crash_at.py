"""Counts what happens in a run, writes it down, and ends the run at point CRASH_AT with SIGKILL: nobody gets to clean up.

Test only. CRASH_LOG: a file that receives one JSON line a point. CRASH_AT: the number of the point at which to kill, none for
a run that is only counted. CRASH_WHO: who dies: `ansible` (ansible-playbook and its workers), `parent` (the process that started
it), `all` (both). Points are numbered from 1; a task has three: `start`, before anything is sent; `during`, a moment after, while
a module is at work on the host; `result`, when its answer has arrived.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: crash_at
    type: aggregate
    short_description: Kills a run at a numbered point
    description:
      - For tests. See the top of the file.
"""

MOMENT = 0.45  # seconds from a task's start until its module is at work on a host of the lab


class CallbackModule(CallbackBase):
    """Every method below is one kind of point."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "crash_at"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        # One command may run Ansible several times: the count goes on where the one before stopped.
        log = Path(os.environ.get("CRASH_LOG") or os.devnull)
        self.count = len(log.read_text(encoding="utf-8").splitlines()) if log.is_file() else 0
        self.at = int(os.environ.get("CRASH_AT") or 0)
        self.task = self.play = ""

    def v2_playbook_on_play_start(self, play: object) -> None:
        self.play = play.get_name()

    def v2_playbook_on_task_start(self, task: object, is_conditional: bool) -> None:
        self.task = task.get_name()
        self._point("start")
        self._point("during")

    def v2_playbook_on_handler_task_start(self, task: object) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_runner_on_ok(self, result: object) -> None:
        self._point("result")

    def v2_runner_on_failed(self, result: object, ignore_errors: bool = False) -> None:
        self._point("result")

    def v2_runner_on_unreachable(self, result: object) -> None:
        self._point("result")

    def v2_runner_on_skipped(self, result: object) -> None:
        self._point("result")

    def _point(self, kind: str) -> None:
        self.count += 1
        line = {"point": self.count, "kind": kind, "stage": self.play, "task": self.task}
        if path := os.environ.get("CRASH_LOG"):
            with open(path, "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        if self.count != self.at:
            return
        if kind == "during":
            threading.Thread(target=self._soon, daemon=True).start()
        else:
            _kill(os.environ.get("CRASH_WHO", "all"))

    def _soon(self) -> None:
        time.sleep(MOMENT)
        _kill(os.environ.get("CRASH_WHO", "all"))


def _kill(who: str) -> None:
    victims = [os.getppid()] if who in ("parent", "all") else []
    if who in ("ansible", "all"):
        victims += [*_descendants(os.getpid()), os.getpid()]
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
    time.sleep(60)  # who was left alive goes no further by itself: losing its terminal or its child must end it


def _descendants(pid: int) -> list[int]:
    """Ansible's workers; not ssh's shared connection, which has a life of its own, as in a real kill."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text(encoding="ascii").split():
            found += [*_descendants(int(child)), int(child)]
    return found
