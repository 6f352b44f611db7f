"""The journal of a run on disk: what was asked, each event as it happens, Ansible's own text."""

from __future__ import annotations

import getpass
import json
import os
import secrets
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from provision import __version__, exits
from provision.state import state_dir

Event = dict[str, Any]


def now() -> str:
    """The time as events carry it: RFC 3339, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Journal:
    """`runs/<id>/` with run.json, events.jsonl and ansible.log, all readable by their owner alone."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        self.id = f"{stamp}-{secrets.token_hex(2)}"
        self.directory = state_dir() / "runs" / self.id
        self.directory.mkdir(mode=0o700, parents=True)
        self.log = self.directory / "ansible.log"
        self._facts = {
            "id": self.id,
            "version": __version__,
            "user": getpass.getuser(),
            "controller": os.uname().nodename,
            "command": sys.argv[1:],
            **facts,
            "started": now(),
            "finished": None,
            "exit_code": None,
        }
        self._write_facts()
        self._events = self._open("events.jsonl")
        self._log = self._open("ansible.log")

    def event(self, event: Event) -> None:
        """Write one event as one line, at once."""
        self._events.write(json.dumps(event, ensure_ascii=False) + "\n")

    def text(self, text: str) -> None:
        """Write lines of Ansible's own text."""
        self._log.write(text + "\n")

    def finish(self, exit_code: int) -> None:
        """Say in run.json how the run ended."""
        self._facts |= {"finished": now(), "exit_code": exit_code}
        self._write_facts()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error:
            self.finish(exits.INTERRUPTED if isinstance(error, KeyboardInterrupt) else exits.FAILED)
        self._events.close()
        self._log.close()

    def _open(self, name: str) -> Any:  # noqa: ANN401 - a text file; its exact type has no public name
        descriptor = os.open(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "w", buffering=1, encoding="utf-8")

    def _write_facts(self) -> None:
        path = self.directory / "run.json"
        beside = path.with_suffix(".new")
        beside.touch(mode=0o600)
        beside.write_text(json.dumps(self._facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.rename(path)
