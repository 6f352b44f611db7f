"""What a run looks like while it lasts: a line for each host on a terminal, a line for each stage elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from provision.converge.journal import Event
from provision.inventory import Fleet

REFRESHES = 4  # a second
NAMED = 4  # replicas in the title


class Display(Protocol):
    """What follows a run."""

    def event(self, event: Event) -> None:
        """Take one event of the run."""

    def text(self, line: str) -> None:
        """Take a line of Ansible's own text."""


class JsonLines:
    """Each event as one line on standard output, and nothing else."""

    def event(self, event: Event) -> None:
        """Print an event at once."""
        sys.stdout.write(json.dumps(event, ensure_ascii=False) + "\n")
        sys.stdout.flush()

    def text(self, line: str) -> None:
        """Ansible's own text is in the log."""


class Plain:
    """One line a stage, and one for each failure as it happens: for logs and pipes."""

    def __init__(self, console: Console, text: bool) -> None:
        self.console, self._text = console, text
        self._all: list[str] = []
        self._hosts: dict[str, str] = {}

    def event(self, event: Event) -> None:
        """Print what is worth a line."""
        kind = event["type"]
        if kind == "run_started":
            self._all = event["hosts"]
        elif kind == "stage_started":
            self._hosts = dict.fromkeys(self._all, "ok") if event["stage"] == "reach" else {}
        elif kind == "wave_started" and event["wave"] > 1:
            self.print(f"wave {event['wave']}: {', '.join(event['hosts'])}")
        elif kind in ("replica_drained", "replica_admitted", "replica_stays_out"):
            self.print(rotated(event))
        elif kind == "stopping":
            self.print(stopping(event))
        elif kind == "host_refused":
            self._hosts[event["host"]] = "unreachable" if event["unreachable"] else "failed"
        elif kind == "task_finished":
            self._finished(event)
        elif kind == "stage_finished":
            counts = Counter(self._hosts.values())
            said = " · ".join(f"{count} {status}" for status, count in counts.items()) or "nothing to do"
            self.print(f"{event['stage']:<12} {said}  ({event['seconds']:.1f} s)")

    def text(self, line: str) -> None:
        """Ansible's own text, if asked for."""
        if self._text:
            self.print(line)

    def print(self, line: str) -> None:
        """One line as it is, neither wrapped nor coloured."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _finished(self, event: Event) -> None:
        host, status = event["host"], event["status"]
        worst = ["ok", "skipped", "changed", "unreachable", "failed"]
        before = self._hosts.get(host, "ok")
        self._hosts[host] = max(before, "ok" if status == "skipped" else status, key=worst.index)
        if status in ("failed", "unreachable"):
            self.print(f"{host}: {event['stage']}: {event['task']}: {event['message'].splitlines()[0]}")


@dataclass
class _Row:
    stage: str = "reach"
    task: str = ""
    since: float = 0.0
    done: int = 0
    total: int = 0
    ended: str = ""


class Lines:
    """One line a host on a terminal: its stage, what it does now and for how long."""

    def __init__(self, console: Console, title: str, text: bool) -> None:
        self.console, self._title, self._text = console, title, text
        self._rows: dict[str, _Row] = {}
        self._notice = ""
        self._start = time.monotonic()
        self.live = Live(
            get_renderable=self._screen,
            console=console,
            transient=True,
            refresh_per_second=REFRESHES,
            redirect_stdout=False,
        )

    def event(self, event: Event) -> None:
        """Note what an event says of a host; the terminal is redrawn by itself."""
        kind = event["type"]
        row = self._rows.get(event.get("host", ""))
        if kind == "run_started":
            now = time.monotonic()
            self._rows = {name: _Row(task="verifying its receipts", since=now) for name in event["hosts"]}
        elif kind == "verified":
            self._verified(event)
        elif kind == "mending":
            self._mending(event)
        elif kind in ("replica_drained", "replica_admitted", "replica_stays_out"):
            self._notice = rotated(event)
        elif kind == "stopping":
            self._notice = stopping(event)
        elif row and kind == "host_refused":
            row.ended = "unreachable" if event["unreachable"] else "refused"
            row.task = event["message"]
        elif row and kind == "task_started":
            row.done += row.stage != event["stage"]
            row.stage, row.task, row.since = event["stage"], event["task"], time.monotonic()
        elif row and kind == "task_finished" and event["status"] in ("failed", "unreachable"):
            row.ended, row.task = event["status"], f"{event['task']}: {event['message'].splitlines()[0]}"

    def _verified(self, event: Event) -> None:
        """What stands needs no line any more."""
        now = time.monotonic()
        for name in event["hosts"]:
            stages = event["visits"].get(name, {})
            if not stages and not self._rows[name].ended:
                del self._rows[name]
            elif stages:
                self._rows[name] = _Row("", "waiting for its turn", now, total=len(stages))

    def _mending(self, event: Event) -> None:
        now = time.monotonic()
        for name, stages in event["hosts"].items():
            self._rows[name] = _Row("mend", f"sets right {', '.join(stages)}", now)

    def text(self, line: str) -> None:
        """Ansible's own text scrolls by above the lines, if asked for."""
        if self._text:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _screen(self) -> Group:
        title = Table.grid(expand=True)
        title.add_column(no_wrap=True)
        title.add_column(justify="right")
        title.add_row(f"[dim]{escape(self._title)}[/]", f"[dim]{_clock(time.monotonic() - self._start)}[/]")
        return Group(title, self._table(), *([f"[yellow]{escape(self._notice)}[/]"] if self._notice else []))

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for width in (max(map(len, self._rows), default=0), 11, 5):
            table.add_column(no_wrap=True, width=width)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(justify="right", no_wrap=True)
        shown = max(1, self.console.size.height - 3)
        rows = (
            sorted(self._rows.items(), key=lambda item: bool(item[1].ended))
            if len(self._rows) > shown
            else self._rows.items()
        )
        for name, row in list(rows)[:shown]:
            colour = {"": "cyan", "unreachable": "yellow"}.get(row.ended, "red")
            spent = "" if row.ended else _clock(time.monotonic() - row.since)
            table.add_row(
                f"[bold]{escape(name)}[/]",
                f"[{colour}]{row.ended or row.stage}[/]",
                f"[dim]{row.done}/{row.total}[/]" if row.total else "",
                escape(row.task),
                f"[dim]{spent}[/]",
            )
        return table


def rotated(event: Event) -> str:
    """A replica that left rotation, came back, or did not."""
    if event["type"] == "replica_admitted":
        return f"{event['replica']} is in rotation again"
    if event["type"] == "replica_stays_out":
        return f"{event['replica']} stays out of rotation, as {event['by']} left it: not all of it stands"
    left = f", with {event['in_flight']} requests still in flight" if event["in_flight"] else ""
    return f"{event['replica']} is drained, after {event['seconds']:.0f} s{left}"


def stopping(event: Event) -> str:
    """What is still at work after a first Ctrl-C."""
    tasks = [f"{host} ({running['stage']}: {running['task']})" for host, running in event["running"].items()]
    at_work = ", ".join(tasks[:NAMED]) + (f" and {len(tasks) - NAMED} more" if len(tasks) > NAMED else "")
    return f"Stopping once the current tasks are done: {at_work or 'none'}. Ctrl-C again stops at once."


@contextmanager
def progress(fleet: Fleet, inventory: Path, text: bool, as_json: bool) -> Iterator[Display]:
    """The display that suits standard error; it leaves a terminal as clean as it was."""
    console = Console(stderr=True)
    if as_json:
        yield JsonLines()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield Plain(console, text)
    else:
        lines = Lines(console, f"{inventory} · {_replicas(fleet)}", text)
        with lines.live:
            yield lines


def _replicas(fleet: Fleet) -> str:
    names = [replica.name for replica in fleet.replicas]
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
