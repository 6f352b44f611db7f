"""`provision show RUN`: all that one run did, host by host, with the differences."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from provision.cli.history import ending, line
from provision.converge.history import RunRecord, load, runs
from provision.converge.identity import clock
from provision.converge.journal import Event
from provision.converge.outcome import BAD

SHORT = 72  # characters of a before and after that fit in one line
LONGEST = 40  # lines of one difference
ARROW = "\N{RIGHTWARDS ARROW}"


@dataclass
class _Host:
    changes: list[Event] = field(default_factory=list)
    failure: Event | None = None
    held_back: tuple[str, ...] = ()


def _ids(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in ("last", *(run.id for run in runs())) if name.startswith(incomplete)]


@click.command()
@click.argument("run", shell_complete=_ids)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/journal.md).")
def show(*, run: str, as_json: bool) -> None:
    """Tell what RUN changed on which host, with the differences, and what failed. RUN is an id, its end, or `last`."""
    record = load(run)
    hosts = _hosts(record)
    if as_json:
        click.echo(json.dumps(_document(record, hosts), indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    for text in (*_head(record), *_body(record, hosts), f"Log: {record.log}"):
        console.print(text)


def _hosts(record: RunRecord) -> dict[str, _Host]:
    hosts = {name: _Host() for name in record.hosts}
    for event in record.events():
        host = hosts.get(str(event.get("host")))
        if host is None:
            continue
        if event["type"] == "task_finished" and event["status"] == "changed":
            host.changes.append(event)
        elif event["type"] == "host_refused" or (event["type"] == "task_finished" and event["status"] in BAD):
            host.failure = event
        elif event["type"] == "host_finished":
            host.held_back = tuple(event["held_back"])
            host.failure = host.failure if event["status"] in BAD else None  # a block of the role came to its rescue
    return hosts


def _document(record: RunRecord, hosts: Mapping[str, _Host]) -> dict[str, Any]:
    wanted = ("stage", "task", "actions", "effects", "changes")
    failure = ("stage", "task", "kind", "message", "hint")
    return {
        "version": 1,
        **line(record),
        "stages": list(record.stages),
        "stack": record.facts.get("stack"),
        "error": record.told["error"],
        "log": str(record.log),
        "hosts": {
            name: {
                "status": record.statuses.get(name),
                "changes": [{key: event[key] for key in wanted if key in event} for event in host.changes],
                "failure": host.failure and {key: host.failure[key] for key in failure if key in host.failure},
                "held_back": list(host.held_back),
                "last": record.outcome.last.get(name),
            }
            for name, host in hosts.items()
        },
    }


def _head(record: RunRecord) -> Iterator[str]:
    facts = record.facts
    command = shlex.join(["provision", *map(str, facts.get("command") or ())])
    rehearsed = "  (simulated hosts)" if record.lab else ""
    yield f"[bold]{record.id}[/]  {escape(command)}{rehearsed}"
    yield f"  by {escape(str(record.who or facts.get('user')))}"
    seconds = record.told["seconds"]
    took = "" if seconds is None else f", {seconds:.1f} s"
    code = "" if record.exit_code is None else f" (exit code {record.exit_code})"
    yield f"  {clock(str(facts.get('started', '')))}{took}: {ending(record)}{code}"
    if record.state == "died":
        yield f"  Its process is gone; its last event was at {clock(record.last_seen)}. Go on:  provision resume"
    if facts.get("resumes"):
        yield f"  It went on where {facts['resumes']} had ended."
    yield f"  {escape(str(record.inventory))}: {escape(', '.join(record.hosts))}"
    yield ""


def _body(record: RunRecord, hosts: Mapping[str, _Host]) -> Iterator[str]:
    if not any(host.changes for host in hosts.values()):
        yield "Nothing would change." if record.check else "Nothing was changed."
        yield ""
    same: dict[str, list[str]] = {}
    for name, host in hosts.items():
        if host.changes:
            same.setdefault("\n".join(_changes(host)), []).append(name)
    for text, names in same.items():
        yield f"[bold]{escape(', '.join(names))}[/]\n{text}\n"
    for name, host in hosts.items():
        yield from _failure(name, host)
    if record.state in ("died", "interrupted", "running"):
        for name in sorted(record.outcome.running):
            yield f"{escape(name)} was in {escape(record.outcome.last[name])}"
    if record.told["error"]:
        yield f"[red]The run itself failed:[/] {escape(str(record.told['error']))}"


def _changes(host: _Host) -> Iterator[str]:
    stage = None
    for event in host.changes:
        effects = event.get("effects") or []
        for number, text in enumerate(event["actions"] or [event["task"]]):
            effect = effects[number] if number < len(effects) and effects[number] != "none" else ""
            label = event["stage"] if event["stage"] != stage else ""
            stage = event["stage"]
            yield f"  [cyan]{label:<12}[/]{escape(str(text))}" + (f"  [yellow]{effect}[/]" if effect else "")
        for change in event["changes"]:
            yield from (f"  {'':<12}  {text}" for text in _difference(change))


def _difference(change: Mapping[str, str]) -> Iterator[str]:
    before, after, name = change["before"].strip(), change["after"].strip(), escape(change["resource"])
    if "\n" not in before + after and len(before + after) <= SHORT:
        yield f"[dim]{name}[/]  {escape(before) or 'absent'} {ARROW} {escape(after) or 'absent'}"
        return
    yield f"[dim]{name}[/]"
    pieces = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=1)
    colours = {"+": "green", "-": "red", "@": "dim"}
    lines = list(pieces)[2:]
    for text in lines[:LONGEST]:
        colour = colours.get(text[0])
        yield f"  [{colour}]{escape(text)}[/]" if colour else f"  {escape(text)}"
    if len(lines) > LONGEST:
        yield f"  [dim]and {len(lines) - LONGEST} more lines; --json has them all[/]"


def _failure(name: str, host: _Host) -> Iterator[str]:
    if host.failure:
        first, *more = str(host.failure["message"]).splitlines() or [""]
        where = f"{host.failure['stage']}: {host.failure['task']}: " if "task" in host.failure else ""
        yield f"[bold red]{escape(name)}[/]: {escape(where + first)}"
        yield from (f"  {escape(text)}" for text in (*more, *str(host.failure.get("hint") or "").splitlines()))
    if host.held_back:
        yield f"{escape(name)}: {', '.join(host.held_back)} not run, since another host failed."
