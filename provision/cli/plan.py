"""`provision plan INVENTORY`: what bootstrap would do, and why, before anything is done."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from provision import exits
from provision.cli.fleet import inventory_argument, lab_option, load
from provision.cli.plan_screen import screen
from provision.cli.progress import progress
from provision.cli.selection import limit_option, resolved, stage_option
from provision.plan.document import document, may_write, write
from provision.plan.make import Planning, make_plan
from provision.plan.model import Options


@click.command()
@inventory_argument
@limit_option
@stage_option
@click.option("--full", is_flag=True, help="Trust no receipt: look at every stage of every host.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Keep the plan, for provision apply.")
@click.option("-D", "--diff", is_flag=True, help="Show every change, and changed files line by line.")
@click.option("-f", "--forks", type=click.IntRange(1), help="Hosts at once [default: all, 64 at most].")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON document (docs/plan.md).")
@lab_option
def plan(
    *,
    inventory: Path,
    limit: str | None,
    stages: tuple[str, ...],
    full: bool,
    out: Path | None,
    diff: bool,
    forks: int | None,
    as_json: bool,
    lab: bool,
) -> int:
    """Say what bootstrap would change on the hosts of INVENTORY: each change with its effect and its reason.

    The exit code is 2 if anything would change, 0 if nothing would.
    """
    start = time.monotonic()
    if out:
        may_write(out)
    fleet = load(inventory, lab)
    hosts = resolved(limit, fleet)  # by name: what the last run was may change before the plan is applied
    if limit and not hosts:
        click.echo(f"No host of {inventory} failed in its last run.", err=as_json)
        return exits.OK
    with progress(fleet, inventory, text=False, as_json=False) as display:
        planning = make_plan(fleet, Options(hosts, stages, full, lab), forks=forks, on_event=display.event)
    if as_json:
        click.echo(json.dumps(document(planning.plan), indent=1, ensure_ascii=False))
    else:
        console = Console(soft_wrap=True, highlight=False)
        for line in screen(planning, fleet, seconds=time.monotonic() - start, full=diff):
            console.print(line)
    if out:
        _keep(planning, out, quiet=as_json)
    return planning.exit_code


def _keep(planning: Planning, out: Path, quiet: bool) -> None:
    if not planning.whole:
        message = f"{out} is not written: the plan does not know every host. Mend them, or leave them out (--limit)."
        click.echo(message, err=True)
        return
    write(planning.plan, out)
    if not quiet:
        command = shlex.join(["provision", "apply", str(out)])
        Console(soft_wrap=True, highlight=False).print(f"Apply exactly this:  {escape(command)}")
