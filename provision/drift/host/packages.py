"""What dpkg and apt wrote down of packages: what was done to them, when, and by which command."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from provision.drift.host import words

LOGS = ("/var/log/dpkg.log", "/var/log/dpkg.log.1")
HISTORIES = ("/var/log/apt/history.log", "/var/log/apt/history.log.1")
LARGEST_LOG = 32 << 20  # bytes
DONE = {"install": "installed", "upgrade": "upgraded", "remove": "removed", "purge": "purged"}
MARGIN_S = 60  # apt's times and dpkg's are a little apart


class Entry(NamedTuple):
    """One thing that dpkg did."""

    at: float
    done: str
    package: str
    place: str


class Transaction(NamedTuple):
    """One run of apt."""

    begin: float
    end: float
    packages: frozenset[str]
    command: str
    by: str


def who(names: list[str], since: float) -> str | None:
    """What was done last to one of these packages since then, and by whom."""
    entry = max((entry for log in LOGS for entry in entries(log, since) if entry.package in names), default=None)
    if entry is None:
        return None
    transaction = _of(entry)
    if transaction:
        how = [transaction.command, transaction.by and f"asked for by {transaction.by}", entry.place]
        return f"apt {entry.done} {entry.package} {words.ago(entry.at)} ({', '.join(filter(None, how))})"
    return f"dpkg {entry.done} {entry.package} {words.ago(entry.at)} ({entry.place})"


def _of(entry: Entry) -> Transaction | None:
    """The run of apt in which dpkg did this: of several about it the nearest, and of those the last."""
    found = [
        (max(run.begin - entry.at, entry.at - run.end, 0.0), -run.begin, run)
        for run in (run for history in HISTORIES for run in transactions(history))
        if entry.package in run.packages
    ]
    apart, _, nearest = min(found, default=(MARGIN_S + 1, 0.0, None))
    return nearest if apart <= MARGIN_S else None


def entries(log: str, since: float) -> Iterator[Entry]:
    """What a log of dpkg has since a time, with file and line."""
    for number, line in enumerate(_lines(log, since), 1):
        said = line.split()
        if len(said) > 3 and said[2] in DONE:  # noqa: PLR2004 - date, time, verb, package
            at = _time(f"{said[0]} {said[1]}")
            if at >= since:
                yield Entry(at, DONE[said[2]], said[3].split(":")[0], f"{log}:{number}")


def transactions(history: str) -> Iterator[Transaction]:
    """The runs of apt that a history has."""
    for block in "\n".join(_lines(history, 0)).split("\n\n"):
        said = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "Start-Date" not in said:
            continue
        begin = _time(said["Start-Date"])
        listed = " ".join(
            said.get(verb, "") for verb in ("Install", "Upgrade", "Downgrade", "Reinstall", "Remove", "Purge")
        )
        name = re.fullmatch(r"(\S+) \((\d+)\)", said.get("Requested-By", ""))
        yield Transaction(
            begin,
            _time(said["End-Date"]) if "End-Date" in said else begin,
            frozenset(re.findall(r"([^\s:,()]+):\w+ \(", listed)),
            _command(said.get("Commandline", "")),
            f"uid {name[2]} ({name[1]})" if name else "",
        )


def _command(line: str) -> str:
    """What apt was called as; a program without arguments by its name alone."""
    shown = words.command(line)
    return f"`{shown}`" if " " in shown else shown


def _lines(path: str, since: float) -> list[str]:
    """The lines of a log that was written to since a time."""
    file = Path(path)
    try:
        seen = file.stat()
        is_of_use = seen.st_mtime >= since and seen.st_size <= LARGEST_LOG
        return file.read_text(encoding="utf-8", errors="replace").splitlines() if is_of_use else []
    except OSError:
        return []


def _time(text: str) -> float:
    """A local time as these logs write it."""
    return time.mktime(time.strptime(" ".join(text.split()), "%Y-%m-%d %H:%M:%S"))
