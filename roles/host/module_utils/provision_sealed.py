"""Files whose content was verified once: a fixed modification time tells that nobody wrote them since.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterable

STAMP = 946684800  # 2000-01-01: the modification time of every file whose content was verified
BLOCK = 1 << 22  # bytes read at a time


def is_sealed(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether the file was verified and not written since, told by its size and modification time alone."""
    try:
        seen = path.stat()
    except OSError:
        return False
    return seen.st_size == wanted["size"] and seen.st_mtime == STAMP


def seal(path: Path) -> None:
    """Mark a file as verified."""
    os.chmod(path, 0o644)
    os.utime(path, (STAMP, STAMP))


def unseal(path: Path) -> None:
    """Have a file count as one whose content nobody has verified."""
    if path.exists():
        os.utime(path)


def holds(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether the file's content is what the hub says, by reading all of it."""
    try:
        size = path.stat().st_size
        digest = hashlib.sha256() if "sha256" in wanted else hashlib.sha1(b"blob %d\0" % size)  # noqa: S324  git's
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # what the disk has is asked for
            while block := stream.read(BLOCK):
                digest.update(block)
    except OSError:
        return False
    return size == wanted["size"] and digest.hexdigest() == wanted.get("sha256", wanted.get("git"))


def which_hold(folder: Path, files: dict[str, dict[str, Any]], names: Iterable[str]) -> set[str]:
    """Those of the files whose content is right; several are read at a time."""
    listed = list(names)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        verdicts = pool.map(lambda name: holds(folder / name, files[name]), listed)
        return {name for name, right in zip(listed, verdicts) if right}  # noqa: B905  Python 3.9


def open_mode(path: Path) -> int:
    """The mode with which every user can read what is there: a file's as it is sealed, a directory's own and that."""
    return stat.S_IMODE(path.stat().st_mode) | 0o555 if path.is_dir() else 0o644
