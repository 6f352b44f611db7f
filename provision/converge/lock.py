"""One run at a time on one inventory, as far as this controller's user is concerned; `lease` is for all others."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from provision.converge.identity import Holder, holder, identify
from provision.converge.journal import now
from provision.errors import LockedError
from provision.state import state_dir


class Lock:
    """A lock that is held. `took_over` is the holder that died with it, if one did."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._mine = Holder("", identify(), now(), shlex.join(["provision", *sys.argv[1:]]))
        self.took_over = holder(_text(file))
        self._write(self._mine.text())

    def name(self, run: str) -> None:
        """Say which run holds it, once that has an id."""
        self._write(Holder(run, self._mine.who, self._mine.since, self._mine.command).text())

    def clear(self) -> None:
        """The process lives to end it: the next holder takes over from nobody."""
        os.ftruncate(self._file, 0)

    def _write(self, text: str) -> None:
        data = text.encode()
        os.pwrite(self._file, data, 0)
        os.ftruncate(self._file, len(data))


@contextmanager
def locked(inventory: Path) -> Iterator[Lock]:
    """Hold the lock of an inventory. The kernel frees it when the process ends, however it ends.

    Raises LockedError that says who holds it, since when, from where, and with which run.
    """
    directory = state_dir() / "locks"
    directory.mkdir(mode=0o700, exist_ok=True)
    digest = hashlib.sha256(str(inventory.resolve()).encode()).hexdigest()[:16]
    file = os.open(directory / f"{digest}.json", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(_who(inventory, file)) from error
        lock = Lock(file)
        try:
            yield lock
        finally:
            lock.clear()
    finally:
        os.close(file)


def _text(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")


def _who(inventory: Path, file: int) -> str:
    held = holder(_text(file))
    said = f"by {held}" if held else "by another run, which left no name"
    lines = [f"{inventory} is being changed {said}."]
    if held and held.command:
        lines.append(f"It is:  {held.command}")
    lines.append("Wait for it to end, then run the same command again.")
    if held and held.run:
        lines.append(f"What it has done so far:  provision show {held.run}")
    return "\n  ".join(lines)
