"""One run at a time on one inventory, as far as this controller's user is concerned."""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from provision.errors import LockedError
from provision.state import state_dir


@contextmanager
def locked(inventory: Path) -> Iterator[None]:
    """Hold the lock of an inventory. The kernel frees it when the process ends, however it ends.

    Raises LockedError that says who holds it, since when, and as which process.
    """
    directory = state_dir() / "locks"
    directory.mkdir(mode=0o700, exist_ok=True)
    digest = hashlib.sha256(str(inventory.resolve()).encode()).hexdigest()[:16]
    with (directory / f"{digest}.json").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(_who(inventory, file.name)) from error
        holder = {
            "user": getpass.getuser(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        file.truncate(0)
        file.write(json.dumps(holder))
        file.flush()
        yield


def _who(inventory: Path, path: str) -> str:
    try:
        holder = json.loads(Path(path).read_text(encoding="utf-8"))
        since = datetime.fromisoformat(holder["since"]).astimezone().strftime("%H:%M:%S")
        who = f"{holder['user']}, process {holder['pid']}, since {since}"
    except (OSError, ValueError, KeyError):
        who = "its holder left no name"
    return (
        f"{inventory} is being changed by another run ({who}).\n  Wait for it to end, then run the same command again."
    )
