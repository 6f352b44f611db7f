"""Ends a run between two tasks, when nothing is at work on any host, once the file named in PROVISION_STOP exists."""

from __future__ import annotations

import os

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
    name: stop_between_tasks
    type: aggregate
    short_description: Ends a run in order when it is asked to
    description:
      - Before each task it looks for a file; if it is there, the run ends as after Ctrl-C, but with no task cut short.
"""


class CallbackModule(CallbackBase):
    """Looks for the file before each task; the linear strategy has waited for all hosts by then."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "stop_between_tasks"
    CALLBACK_NEEDS_ENABLED = True

    def _look(self) -> None:
        path = os.environ.get("PROVISION_STOP")
        if path and os.path.exists(path):
            raise KeyboardInterrupt

    def v2_playbook_on_play_start(self, play: object) -> None:  # noqa: ARG002
        """Before the first task of a stage."""
        self._look()

    def v2_playbook_on_task_start(self, task: object, is_conditional: bool) -> None:  # noqa: ARG002
        """Before each task."""
        self._look()
