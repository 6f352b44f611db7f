"""What a rule says of a host, or of several together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much it matters, from nothing to what would end a bootstrap."""

    OK = "ok"
    NOTE = "note"  # worth knowing; nothing to be done, or bootstrap does it
    WARNING = "warning"  # wrong: bootstrap repairs it, or it costs speed or time
    BLOCKER = "blocker"  # a bootstrap would fail, or end with what does not work


WORST_FIRST = tuple(reversed(Severity))


@dataclass(frozen=True)
class Finding:
    """What it is about, how bad it is, what is, and what to do; `hosts` are those that it concerns."""

    check: str
    severity: Severity
    message: str
    todo: str = ""
    hosts: tuple[str, ...] = ()


def ok(check: str, message: str) -> Finding:
    """All as it should be."""
    return Finding(check, Severity.OK, message)


def note(check: str, message: str, todo: str = "") -> Finding:
    """Worth knowing."""
    return Finding(check, Severity.NOTE, message, todo)


def warning(check: str, message: str, todo: str) -> Finding:
    """Wrong, though a bootstrap gets through."""
    return Finding(check, Severity.WARNING, message, todo)


def blocker(check: str, message: str, todo: str) -> Finding:
    """In the way of a bootstrap."""
    return Finding(check, Severity.BLOCKER, message, todo)
