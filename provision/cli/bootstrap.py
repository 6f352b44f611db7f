"""`provision bootstrap INVENTORY`: the whole job, and again whenever something has drifted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from provision import exits
from provision.cli.fleet import inventory_argument, lab_option, load
from provision.cli.options import Options
from provision.cli.progress import progress
from provision.cli.selection import limit_option, resolved, stage_option
from provision.cli.summary import show
from provision.converge import Result
from provision.converge import bootstrap as converge
from provision.errors import UsageError
from provision.inventory import Fleet


@click.command()
@inventory_argument
@limit_option
@stage_option
@click.option("-C", "--check", is_flag=True, help="Change nothing; say what would change (exit code 2 if anything).")
@click.option(
    "--full", is_flag=True, help="Visit every stage of every host, and read all weights, whatever receipts say."
)
@click.option("--canary", is_flag=True, help="Of the replicas that serve change one; the others wait (exit code 2).")
@click.option("-D", "--diff", is_flag=True, help="Show changed files line by line.")
@click.option("-f", "--forks", type=click.IntRange(1), help="Hosts at once [default: all, 64 at most].")
@click.option("-v", "--verbose", count=True, help="Show Ansible's own text; -vv and more as for ansible-playbook.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines (docs/events.md), nothing else.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This controller, or all those of a Ray cluster, each with a share of the hosts (docs/scale.md).",
)
@click.option("--ray-address", metavar="HOST:PORT", help="With --engine ray: where the cluster is [env: RAY_ADDRESS].")
@lab_option
def bootstrap(
    *,
    inventory: Path,
    limit: str | None,
    stages: tuple[str, ...],
    check: bool,
    full: bool,
    canary: bool,
    diff: bool,
    forks: int | None,
    verbose: int,
    as_json: bool,
    engine: str,
    ray_address: str | None,
    lab: bool,
) -> int:
    """Bring every host of INVENTORY to what it says; again, and only what has drifted is changed."""
    if canary and (check or engine != "local"):
        raise UsageError("--canary goes with neither --check nor --engine ray: it is one run that stops half way.")
    options = Options(
        limit,
        stages,
        check,
        full,
        forks,
        verbose,
        as_json,
        diff,
        lab,
        engine=engine,
        ray_address=ray_address,
        canary=canary,
    )
    return perform(load(inventory, lab), inventory, options)


def perform(fleet: Fleet, inventory: Path, options: Options) -> int:
    """Run what was asked for, with display and summary; the exit code."""
    limit = resolved(options.limit, fleet)
    if options.limit and not limit:
        click.echo(f"No host of {inventory} failed in its last run.")
        return exits.OK
    with progress(fleet, inventory, text=options.verbose > 0, as_json=options.as_json) as display:
        result = _engine(options)(
            fleet,
            limit=limit,
            stages=options.stages,
            check=options.check,
            full=options.full,
            forks=options.forks,
            verbosity=max(0, options.verbose - 1),
            on_event=display.event,
            on_text=display.text,
        )
    if not options.as_json:
        show(result, fleet, inventory, full=options.diff, command=_command(inventory, options))
    return result.exit_code


def _command(inventory: Path, options: Options) -> str:
    """What does the same once more, where that is no bootstrap."""
    if not options.back_to:
        return ""
    lab = " --lab" if options.lab else ""
    return f"provision serve rollback {inventory} {options.limit} --to {options.back_to}{lab}"


def _engine(options: Options) -> Callable[..., Result]:
    """What runs it: this process, or the controllers of a Ray cluster."""
    if options.engine == "local":
        return partial(
            converge,
            resumes=options.resumes,
            canary=options.canary,
            back_to=options.back_to,
            reboots=options.reboots,
        )
    from provision.converge.shards import run_shards  # noqa: PLC0415 - Ray is an extra that few install

    return partial(run_shards, address=options.ray_address, resumes=options.resumes)
