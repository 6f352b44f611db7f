"""`provision apply FILE`: do exactly what a plan says, or nothing."""

from __future__ import annotations

import time
from pathlib import Path

import click

from provision import exits
from provision.cli.fleet import load
from provision.cli.progress import progress
from provision.cli.summary import show
from provision.converge.journal import Event
from provision.plan.apply import Applied
from provision.plan.apply import apply as apply_plan
from provision.plan.document import read


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-D", "--diff", is_flag=True, help="Show changed files line by line.")
@click.option("-f", "--forks", type=click.IntRange(1), help="Hosts at once [default: all, 64 at most].")
@click.option("-v", "--verbose", count=True, help="Show Ansible's own text; -vv and more as for ansible-playbook.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines (docs/events.md), nothing else.")
def apply(*, file: Path, diff: bool, forks: int | None, verbose: int, as_json: bool) -> int:
    """Do exactly what the plan in FILE says (provision plan INVENTORY --out FILE).

    If the inventory or the hosts are not what they were when it was made, nothing is done, each difference is named,
    and the exit code is 2.
    """
    start = time.monotonic()
    plan = read(file)
    inventory = Path(plan.inventory)
    fleet = load(inventory, plan.options.lab)
    with progress(fleet, inventory, text=verbose > 0, as_json=as_json) as display:
        applied = apply_plan(
            plan,
            fleet,
            file,
            forks=forks,
            verbosity=max(0, verbose - 1),
            on_check=_passed_over if as_json else display.event,
            on_event=display.event,
            on_text=display.text,
        )
    if applied.result and not as_json:
        show(applied.result, fleet, inventory, full=diff)
    elif not as_json:
        hosts = f"{applied.hosts} host{'' if applied.hosts == 1 else 's'}"
        took = time.monotonic() - start
        click.echo(f"{hosts} verified in {took:.1f} s: everything in {file} stands; nothing left to do.")
    return _told(applied, file)


def _passed_over(_event: Event) -> None:
    """Who reads events wants those of the run; the prediction before it only foretells them again."""


def _told(applied: Applied, file: Path) -> int:
    """Say what went otherwise than planned; it makes a run that ended well a failed one."""
    result = applied.result
    if result is None or not applied.deviations:
        return exits.OK if result is None else result.exit_code
    click.echo(f"What was done is not what {file} says; look at each:", err=True)
    for line in applied.deviations:
        click.echo(f"  {line}", err=True)
    return result.exit_code or exits.FAILED
