"""Which hosts and stages a run is about: what bootstrap and plan ask in the same words."""

from __future__ import annotations

import click

from provision.converge import STAGES
from provision.converge.history import last_failed
from provision.inventory import Fleet

LAST_FAILED = "@last-failed"

limit_option = click.option(
    "-l",
    "--limit",
    metavar="PATTERN",
    help="Only these hosts, groups or replicas, as for ansible-playbook; @last-failed: those that failed last time.",
)


def _stages(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [stage for stage in STAGES if stage.startswith(incomplete)]


stage_option = click.option(
    "--stage",
    "stages",
    multiple=True,
    metavar="STAGE",
    shell_complete=_stages,
    help=f"Only these stages: {', '.join(STAGES)}.",
)


def resolved(limit: str | None, fleet: Fleet) -> str | None:
    """A limit with the names of the hosts that @last-failed means now; empty if none failed."""
    if limit != LAST_FAILED:
        return limit
    return ",".join(last_failed(fleet.path, lab=fleet.overlaid))
