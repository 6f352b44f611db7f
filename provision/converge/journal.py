"""The journal of a run on disk: what was asked, each event as it happens, Ansible's own text. Nothing secret in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets as random
import shutil
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from provision import __version__, exits
from provision.converge.identity import identify
from provision.converge.outcome import Outcome
from provision.converge.scrub import Scrubber
from provision.errors import ProvisionError
from provision.state import state_dir

Event = dict[str, Any]

KEEP_RUNS = 200  # the last so many are kept, and
KEEP_DAYS = 30  # whatever is younger
SCRATCH = "runner"  # in a run's directory: what ansible-runner works with
STAMP = "%Y%m%dT%H%M%SZ"


def now() -> str:
    """The time as events carry it: RFC 3339, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def runs_dir() -> Path:
    """Where the runs of this user are kept."""
    return state_dir() / "runs"


class Journal:
    """`runs/<id>/` with run.json, events.jsonl and ansible.log, all readable by their owner alone.

    Events and facts survive the end of the process at once, and that of the machine within milliseconds. What cannot
    be written later on (a full disk) is told by `trouble`, and does not stop the run. `scrub` masks the values of
    `secrets`; all that is written here has gone through it.
    """

    def __init__(self, facts: Mapping[str, Any], secrets: Iterable[str] = ()) -> None:
        self.id = f"{datetime.now(UTC).strftime(STAMP)}-{random.token_hex(2)}"
        self.directory = runs_dir() / self.id
        self.log = self.directory / "ansible.log"
        self.outcome = Outcome()
        self.trouble: str | None = None
        self.scrub = Scrubber(secrets)
        self._facts = {
            "id": self.id,
            "version": __version__,
            **asdict(identify()),
            "command": sys.argv[1:],
            **facts,
            "started": now(),
            "finished": None,
            "exit_code": None,
            "outcome": None,
        }
        try:
            prune(runs_dir())
            self.directory.mkdir(mode=0o700, parents=True)
            self._events = _Lines(self.directory / "events.jsonl", durable=True)
            self._log = _Lines(self.log)
            self._write_facts()
        except OSError as error:
            raise ProvisionError(
                f"The journal cannot be written, so nothing was begun: {self.directory}: {error.strerror}.\n"
                "  Make room or set the rights; or keep it elsewhere: export XDG_STATE_HOME=DIRECTORY"
            ) from error

    def event(self, event: Event) -> None:
        """Write one event as one line, at once."""
        self.outcome.add(event)
        self._write(self._events, json.dumps(self.scrub.value(event), ensure_ascii=False))

    def text(self, text: str) -> None:
        """Write lines of Ansible's own text."""
        self._write(self._log, self.scrub.text(text))

    def note(self, **facts: object) -> None:
        """Add facts to run.json that were not known when the run began."""
        self._facts |= facts
        with self._watched():
            self._write_facts()

    def finish(self, exit_code: int) -> None:
        """Say in run.json how the run ended; all events are on disk before."""
        with self._watched():
            self._events.sync()
        self.note(finished=now(), exit_code=exit_code, outcome=self.outcome.document())

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error:
            self.outcome.interrupted = isinstance(error, KeyboardInterrupt)
            self.outcome.error = str(error) or type(error).__name__
            code = error.exit_code if isinstance(error, ProvisionError) else exits.FAILED
            self.finish(exits.INTERRUPTED if self.outcome.interrupted else code)
        with self._watched():
            self._log.close()
            self._events.close()

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.trouble = f"The journal is not whole: {self.directory}: {error.strerror}."

    def _write(self, lines: _Lines, text: str) -> None:
        with self._watched():
            lines.write(text)

    def _write_facts(self) -> None:
        path = self.directory / "run.json"
        beside = path.with_suffix(".new")
        text = json.dumps(self.scrub.value(self._facts), indent=2, ensure_ascii=False) + "\n"
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
        for directory in (self.directory, self.directory.parent):
            sync_directory(directory)


class _Lines:
    """A file that only grows, by whole lines.

    A durable one is synced by a thread of its own: while one sync runs, more lines gather for the next, so that a slow
    disk does not hold up the run. It is also locked as long as it is open.
    """

    def __init__(self, path: Path, durable: bool = False) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._torn = self._ended = False
        self._failed: OSError | None = None  # the kernel tells of a failed sync only once
        self._new = threading.Event()
        self._syncer: threading.Thread | None = None
        if durable:
            with contextlib.suppress(OSError):  # a file system without locks; the process id tells as well
                fcntl.flock(self._file, fcntl.LOCK_EX)
            self._syncer = threading.Thread(target=self._sync_on, name="journal", daemon=True)
            self._syncer.start()

    def write(self, text: str) -> None:
        """Add a line; one that a full disk cut short is ended first, so that it spoils no other."""
        data = (b"\n" if self._torn else b"") + text.encode(errors="replace") + b"\n"
        while data:
            self._torn = True
            data = data[os.write(self._file, data) :]
        self._torn = False
        self._new.set()

    def sync(self) -> None:
        """Return when all lines are on disk; raises OSError if one of them is not."""
        if self._failed:
            raise self._failed
        os.fdatasync(self._file)

    def close(self) -> None:
        """Sync, and give the lock back."""
        self._ended = True
        self._new.set()
        if self._syncer:
            self._syncer.join()
        os.close(self._file)

    def _sync_on(self) -> None:
        while not self._ended:
            self._new.wait()
            self._new.clear()
            try:
                self.sync()
            except OSError as error:
                self._failed = error


def is_open(directory: Path) -> bool:
    """Whether some process still writes this run's journal."""
    try:
        with (directory / "events.jsonl").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def prune(directory: Path) -> None:
    """Delete old runs: those that are neither among the last 200 nor younger than 30 days, and have ended.

    Of every run that has ended, delete what a killed process could not: Ansible's results as they were, not masked.
    """
    oldest = (datetime.now(UTC) - timedelta(days=KEEP_DAYS)).strftime(STAMP)
    names = sorted(path.name for path in directory.glob("[0-9]*Z-*"))
    for number, name in enumerate(names, start=KEEP_RUNS - len(names)):
        old, scratch = number < 0 and name < oldest, directory / name / SCRATCH
        if (old or scratch.exists()) and not is_open(directory / name):
            shutil.rmtree(directory / name if old else scratch, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Have the names in a directory on disk, too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
