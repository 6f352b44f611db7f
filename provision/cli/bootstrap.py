"""`provision bootstrap INVENTORY`: the whole job, and again whenever something has drifted."""

from __future__ import annotations

from pathlib import Path

import click

from provision.cli.fleet import inventory_argument, lab_option, load
from provision.cli.progress import progress
from provision.cli.summary import show
from provision.converge import STAGES
from provision.converge import bootstrap as converge


def _stages(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [stage for stage in STAGES if stage.startswith(incomplete)]


@click.command()
@inventory_argument
@click.option("-l", "--limit", metavar="PATTERN", help="Only these hosts, groups or replicas, as for ansible-playbook.")
@click.option(
    "--stage",
    "stages",
    multiple=True,
    metavar="STAGE",
    shell_complete=_stages,
    help=f"Only these stages: {', '.join(STAGES)}.",
)
@click.option("-C", "--check", is_flag=True, help="Change nothing; say what would change (exit code 2 if anything).")
@click.option("-D", "--diff", is_flag=True, help="Show changed files line by line.")
@click.option("-f", "--forks", type=click.IntRange(1), help="Hosts at once [default: all, 64 at most].")
@click.option("-v", "--verbose", count=True, help="Show Ansible's own text; -vv and more as for ansible-playbook.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines (docs/events.md), nothing else.")
@lab_option
def bootstrap(
    *,
    inventory: Path,
    limit: str | None,
    stages: tuple[str, ...],
    check: bool,
    diff: bool,
    forks: int | None,
    verbose: int,
    as_json: bool,
    lab: bool,
) -> int:
    """Bring every host of INVENTORY to what it says; again, and only what has drifted is changed."""
    fleet = load(inventory, lab)
    with progress(fleet, inventory, text=verbose > 0, as_json=as_json) as display:
        result = converge(
            fleet,
            limit=limit,
            stages=stages,
            check=check,
            forks=forks,
            verbosity=max(0, verbose - 1),
            on_event=display.event,
            on_text=display.text,
        )
    if not as_json:
        show(result, fleet, inventory, full=diff)
    return result.exit_code
