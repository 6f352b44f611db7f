"""How times, users and commands are told."""

from __future__ import annotations

import pwd
import re
import time

LONGEST_COMMAND = 120  # characters
MINUTE, HOUR, DAY = 60, 3600, 86400
SECRET = re.compile(
    r"""(?i)([\w-]*(?:passw|passphrase|token|secret|key|credential|authorization|bearer)[\w-]*["']?\s*[=:\s]\s*)"""
    r"""(?:(?:bearer|basic)\s+)?("[^"]*"|'[^']*'|\S+)"""
)
LOGIN = re.compile(r"((?:^|\s)(?:-u|--user)[\s=]+)\S+")
IN_URL = re.compile(r"://[^/\s@]*@")


def ago(then: float, now: float | None = None) -> str:
    """When something was: "3 min ago", "yesterday at 06:12"."""
    now = time.time() if now is None else now
    seconds = max(0, now - then)
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s ago"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min ago"
    local, today = time.localtime(then), time.localtime(now)
    clock = time.strftime("%H:%M", local)
    if local[:3] == time.localtime(now - DAY)[:3]:
        return f"yesterday at {clock}"
    if local[:3] == today[:3]:
        return f"{seconds / HOUR:.0f} h ago"
    return f"on {time.strftime('%Y-%m-%d', local)} at {clock}"


def user(name: str) -> str:
    """A user by name, as told: "uid 1000 (alice)"."""
    try:
        return f"uid {pwd.getpwnam(name).pw_uid} ({name})"
    except KeyError:
        return name


def owner(uid: int) -> str:
    """A user by number, as told."""
    try:
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"uid {uid}"


def command(line: str) -> str:
    """A command as it may be shown: without what follows words of secrets, and not longer than a line."""
    shown = IN_URL.sub("://***@", LOGIN.sub(r"\1***", SECRET.sub(r"\1***", " ".join(line.split()))))
    first, _, rest = shown.partition(" ")
    shown = f"{first.rsplit('/', 1)[-1]} {rest}".strip()
    return shown if len(shown) <= LONGEST_COMMAND else shown[: LONGEST_COMMAND - 1] + "\N{HORIZONTAL ELLIPSIS}"
