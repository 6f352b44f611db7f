"""`provision preflight INVENTORY`: what can be known of every host before anything is changed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from provision import exits
from provision.cli.fleet import inventory_argument, lab_option, load
from provision.cli.preflight_screen import document, findings, summary, table
from provision.inventory import select
from provision.preflight import SETTINGS, Finding, Severity, Sight, judge, look_at


@click.command()
@inventory_argument
@click.option("-l", "--limit", metavar="PATTERN", help="Only these hosts, groups or replicas, as for ansible-playbook.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also show what is as it should be.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/preflight.md).")
@lab_option
def preflight(*, inventory: Path, limit: str | None, everything: bool, as_json: bool, lab: bool) -> int:
    """Look at every host of INVENTORY, all at once, and say what would keep a bootstrap from going well.

    Nothing is changed. Exit code 0 if nothing is in the way, 1 if something is, 3 if hosts do not answer and nothing
    else is in the way.
    """
    fleet = load(inventory, lab, SETTINGS)
    start = time.monotonic()
    sights = look_at(fleet, select(fleet, limit))
    found, seconds = judge(fleet, sights), time.monotonic() - start
    if as_json:
        click.echo(json.dumps(document(sights, found, seconds, exit_code(sights, found))))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for line in [*table(sights, found), *findings(found, everything), *summary(sights, found, seconds)]:
            console.print(line)
    return exit_code(sights, found)


def exit_code(sights: Sequence[Sight], found: Sequence[Finding]) -> int:
    """What it means for a script."""
    if any(finding.severity == Severity.BLOCKER and finding.check != "unreachable" for finding in found):
        return exits.FAILED
    gone = any(sight.trouble and sight.trouble.unreachable for sight in sights)
    return exits.UNREACHABLE if gone else exits.OK
