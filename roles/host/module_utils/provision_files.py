"""Files written whole, so that nobody ever reads half of one and a power cut leaves the old or the new.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import shutil
from pathlib import Path
from typing import Iterator

WORK = "work"  # beside the host's lock; cleared by whoever next takes it


def read_text(path: str) -> str | None:
    """The text of a file, None if there is none (what else stands there is told when a file is to take its place)."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def write_file(path: str, text: str, mode: int = 0o644, owner: str = "root", group: str = "root") -> None:
    """Put a whole file in place: written beside it with its final mode and owner, synced, renamed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # One fixed name: a run that was killed leaves at most this, and the next takes it over. The lock makes it safe.
    temporary = target.with_name(f".{target.name}.provision-new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as handle:
            handle.write(text)
            handle.flush()
            if os.geteuid() == 0:
                os.fchown(handle.fileno(), pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
            os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(str(target.parent))


@contextlib.contextmanager
def work_folder(parent: str, name: str) -> Iterator[Path]:
    """A folder below `parent` for what is needed only now, closed to others."""
    folder = Path(parent, WORK, f"{name}.{os.getpid()}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_work(path: str) -> None:
    """Remove the folders of processes that were killed."""
    for left in Path(path).glob("*.*"):
        if not Path("/proc", left.suffix[1:]).exists():
            shutil.rmtree(left, ignore_errors=True)


def remove_file(path: str) -> None:
    """Remove a file for good; one that is not there is fine."""
    Path(path).unlink(missing_ok=True)
    if Path(path).parent.is_dir():
        sync_directory(str(Path(path).parent))


def sync_directory(path: str) -> None:
    """Make the names in a directory durable: a rename survives a power cut only after this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_text(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
