"""`provision drift INVENTORY`: what is no longer as the last bootstrap left it, and who changed it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from provision import exits
from provision.cli.drift_screen import Rehearsal, changes_since, document, screen
from provision.cli.fleet import inventory_argument, lab_option, load
from provision.cli.progress import progress
from provision.converge import bootstrap
from provision.converge.scrub import Scrubber, secret_values
from provision.drift.look import HostLook, Spared, healable, look, together
from provision.errors import LockedError
from provision.inventory import Fleet, Host, select

EVERY_S = 60.0


@click.command()
@inventory_argument
@click.option("-l", "--limit", metavar="PATTERN", help="Only these hosts, groups or replicas, as for ansible-playbook.")
@click.option(
    "--watch",
    type=click.FloatRange(1),
    is_flag=False,
    flag_value=EVERY_S,
    metavar="[SECONDS]",
    help="Look again and again, and print what changed since [default: every 60 s]. Stop it with Ctrl-C.",
)
@click.option("--heal", is_flag=True, help="Repair at once what nobody notices: effects none and reload.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a look (docs/drift.md).")
@lab_option
def drift(*, inventory: Path, limit: str | None, watch: float | None, heal: bool, as_json: bool, lab: bool) -> int:
    """Verify that every host of INVENTORY is as the last bootstrap left it, and say who changed what is not.

    Exit code 0 if all is, 2 if anything drifted, 3 if hosts do not answer and the rest is fine, 1 if something could
    not be verified.
    """
    fleet = load(inventory, lab)
    command = Drift(fleet, Rehearsal(inventory, lab), select(fleet, limit), heal, as_json)
    code = command.first()
    while watch:
        time.sleep(watch)
        code = command.again()
    return code


class Drift:
    """The looks of one call: the first is shown whole, of the others what is new."""

    def __init__(self, fleet: Fleet, rehearsal: Rehearsal, hosts: Sequence[Host], heal: bool, as_json: bool) -> None:
        self.fleet, self.rehearsal, self.hosts, self.heal, self.as_json = fleet, rehearsal, hosts, heal, as_json
        self.console = Console(soft_wrap=True, highlight=False)
        self.scrub = Scrubber(secret_values(fleet))  # files that drifted may hold a proxy's password
        self.seen: list[HostLook] = []

    def first(self) -> int:
        """Look, show all, and heal if that was asked for; the exit code."""
        looks, seconds = self._look()
        if not self.as_json:
            self._print(screen(looks, self.rehearsal, seconds, self.heal))
        return self._finish(looks, seconds)

    def again(self) -> int:
        """Look, show what changed since the last look, and heal."""
        looks, seconds = self._look()
        if not self.as_json:
            self._print(changes_since(self.seen, looks))
        return self._finish(looks, seconds)

    def _look(self) -> tuple[list[HostLook], float]:
        start = time.monotonic()
        return look(self.fleet, self.hosts), time.monotonic() - start

    def _finish(self, looks: list[HostLook], seconds: float) -> int:
        healed: dict[str, tuple[str, ...]] = {}
        spared: list[Spared] = []
        if self.heal:
            healed, spared = healable(looks)
            if healed:
                self._try(healed)
                looks, seconds = self._look()
        if self.heal and not self.as_json:
            self._print(_outcome(looks, healed, spared))
        if self.as_json:
            found = document(looks, seconds, healed if self.heal else None, spared)
            click.echo(json.dumps(self.scrub.value(found)))
        self.seen = looks
        return exit_code(looks)

    def _try(self, stages: dict[str, tuple[str, ...]]) -> None:
        """Repair; while watching, another run at work is no reason to stop."""
        try:
            self._repair(stages)
        except LockedError as error:
            if not self.seen:
                raise
            click.echo(str(error), err=True)

    def _repair(self, stages: dict[str, tuple[str, ...]]) -> None:
        """One run for all hosts with the same stages to repair; what it could not do, the next look sees."""
        for hosts, own in together(stages):
            with progress(self.fleet, self.rehearsal.inventory, text=False, as_json=False) as shown:
                bootstrap(self.fleet, limit=",".join(hosts), stages=own, on_event=shown.event, on_text=shown.text)

    def _print(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.console.print(self.scrub.text(line))


def _outcome(looks: Sequence[HostLook], healed: dict[str, tuple[str, ...]], spared: Sequence[Spared]) -> list[str]:
    """What healing came to: what is as it should be again, what is not, and what was left alone."""
    lines = []
    now = {host.name: {receipt.stage for receipt in host.stages if not receipt.stands} for host in looks}
    for host, stages in healed.items():
        good = [stage for stage in stages if stage not in now[host]]
        bad = [stage for stage in stages if stage in now[host]]
        lines += [f"[green]Healed[/] {escape(host)}: {', '.join(good)}."] if good else []
        lines += [f"[red]Not healed[/] {escape(host)}: {', '.join(bad)} still differs."] if bad else []
    lines += [f"Left alone {escape(one.host)}: {one.stage}, since {escape(one.why)}." for one in spared]
    return lines or ["There is nothing to heal."]


def exit_code(looks: Sequence[HostLook]) -> int:
    """What the looks mean for a script."""
    if any(host.failed for host in looks):
        return exits.FAILED
    if any(not (host.stands or host.unreachable) for host in looks):
        return exits.PENDING
    return exits.UNREACHABLE if any(host.unreachable for host in looks) else exits.OK
