"""Which process has which socket or GPU open, and what process that is: one walk through /proc."""

from __future__ import annotations

import os
import pwd
import re
import threading
from pathlib import Path
from typing import Any

OPEN = re.compile(r"socket:\[\d+\]|/dev/nvidia\d+")
_lock = threading.Lock()
_seen: list[dict[str, set[int]]] = []  # two sections ask, and the walk costs a moment on a busy host


def holders() -> dict[str, set[int]]:
    """Process ids by what they have open: `socket:[INODE]` or `/dev/nvidiaN`."""
    with _lock:
        if not _seen:
            _seen.append(_walk())
        return _seen[0]


def _walk() -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for folder in Path("/proc").glob("[0-9]*/fd"):
        try:
            targets = [os.readlink(entry.path) for entry in os.scandir(folder)]
        except OSError:  # it has ended
            continue
        for target in filter(OPEN.fullmatch, targets):
            found.setdefault(target, set()).add(int(folder.parent.name))
    return found


def describe(pid: int) -> dict[str, Any]:
    """What a process is: its program, user, and the systemd unit that it belongs to."""
    folder = Path("/proc", str(pid))
    try:
        name = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
        uid = folder.stat().st_uid
        unit = re.search(r"([^/\s]+\.(?:service|scope))\s*$", (folder / "cgroup").read_text(encoding="utf-8"))
    except OSError:
        return {"pid": pid, "program": "", "user": "", "unit": ""}
    return {"pid": pid, "program": name, "user": _user(uid), "unit": unit.group(1) if unit else ""}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
