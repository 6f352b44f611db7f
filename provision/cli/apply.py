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

        def checked(event: Event) -> None:
            if not as_json:  # who reads events wants those of the run; this one only foretells it again
                display.event(event)

        applied = apply_plan(
            plan,
            fleet,
            file,
            forks=forks,
            verbosity=max(0, verbose - 1),
            on_check=checked,
            on_event=display.event,
            on_text=display.text,
        )
    if applied.result is None:
        if not as_json:
            took = time.monotonic() - start
            hosts = f"{applied.hosts} host{'' if applied.hosts == 1 else 's'}"
            click.echo(f"{hosts} verified in {took:.1f} s: everything in {file} stands; nothing left to do.")
        return exits.OK
    if not as_json:
        show(applied.result, fleet, inventory, full=diff)
    return _told(applied, file)


def _told(applied: Applied, file: Path) -> int:
    """Say what went otherwise than planned; it makes a run that ended well a failed one."""
    result = applied.result
    if result is None or not applied.deviations:
        return exits.OK if result is None else result.exit_code
    click.echo(f"What was done is not what {file} says; look at each:", err=True)
    for line in applied.deviations:
        click.echo(f"  {line}", err=True)
    return result.exit_code or exits.FAILED
