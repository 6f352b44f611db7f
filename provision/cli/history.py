"""`provision history [INVENTORY]`: the runs that were made here, newest first."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from provision import exits
from provision.converge.history import RunRecord, runs
from provision.converge.identity import clock
from provision.converge.outcome import BAD

SHOWN = 20
NARROWEST, PIPED = 100, 160  # columns; rather wrapped by the terminal than with half of an id
COLOURS = {"converged": "green", "running": "cyan", "interrupted": "yellow", "died": "red", "failed": "red"}
WORDS = {
    exits.OK: "converged",
    exits.FAILED: "failed",
    exits.PENDING: "pending",
    exits.UNREACHABLE: "unreachable",
    exits.LOCKED: "refused",
}


@click.command()
@click.argument("inventory", type=click.Path(path_type=Path), required=False)
@click.option("-n", "--number", type=click.IntRange(1), default=SHOWN, help=f"How many, at most [default: {SHOWN}].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/journal.md).")
def history(*, inventory: Path | None, number: int, as_json: bool) -> None:
    """Tell who ran what when, what it changed and how it ended: the runs of INVENTORY, or all."""
    found = runs(inventory)[:number]
    if as_json:
        click.echo(json.dumps({"version": 1, "runs": [line(run) for run in found]}, indent=2, ensure_ascii=False))
    elif found:
        console = Console(highlight=False)
        console.width = max(console.width, NARROWEST if console.is_terminal else PIPED)
        console.print(_table(found, with_inventory=inventory is None))
        click.echo("\nWhat one of them did: provision show RUN (its id, or the end of it; last is the newest)")
    else:
        click.echo(f"No run {f'of {inventory} ' if inventory else ''}is kept here.")


def line(run: RunRecord) -> dict[str, Any]:
    """A run in short, as docs/journal.md describes it."""
    facts = run.facts
    return {
        "id": run.id,
        "state": run.state,
        "started": facts.get("started"),
        "finished": facts.get("finished"),
        "seconds": run.told["seconds"],
        "user": facts.get("user"),
        "controller": facts.get("controller"),
        "origin": facts.get("origin"),
        "command": list(facts.get("command") or ()),
        "inventory": str(run.inventory),
        "lab": run.lab,
        "check": run.check,
        "limit": facts.get("limit"),
        "resumes": facts.get("resumes"),
        "hosts": {host: run.statuses.get(host) for host in run.hosts},
        "changes": run.told["changes"],
        "exit_code": run.exit_code,
    }


def ending(run: RunRecord) -> str:
    """How a run ended, in a word."""
    if run.state != "finished":
        return run.state
    return WORDS.get(run.exit_code or exits.OK, "failed")


def _table(found: list[RunRecord], with_inventory: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("run", "when", "who", "what"):
        table.add_column(name, no_wrap=name != "what")
    for name in ("hosts", "changes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    for run in found:
        seconds = run.told["seconds"]
        table.add_row(
            run.id,
            clock(str(run.facts.get("started", ""))),
            escape(f"{run.facts.get('user')}@{run.facts.get('controller')}"),
            escape(_what(run, with_inventory)),
            str(len(run.hosts)),
            str(run.told["changes"]) if not run.check else f"({run.told['changes']})",
            _outcome(run),
            "-" if seconds is None else f"{seconds:.1f}",
        )
    return table


def _what(run: RunRecord, with_inventory: bool) -> str:
    """The command; the inventory by its last name, since the whole path is long, and known where it was asked for."""
    words = [str(word) for word in run.facts.get("command") or ()]
    paths = [word for word in words[1:] if not word.startswith("-") and Path(word).name == run.inventory.name]
    short = run.inventory.name if with_inventory else ""
    return shlex.join(filter(None, (short if word in paths else word for word in words)))


def _outcome(run: RunRecord) -> str:
    word = ending(run)
    bad = sum(status in BAD for status in run.statuses.values())
    more = f" ({bad} of {len(run.hosts)})" if bad and run.state == "finished" else ""
    return f"[{COLOURS.get(word, 'yellow')}]{word}[/]{more}"
