"""`provision lab`: a fleet of simulated hosts, to rehearse an inventory on before it touches a machine."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.table import Table

from provision.errors import LabError, UsageError

if TYPE_CHECKING:
    from provision.lab.fleet import LabFleet
    from provision.lab.host import LabHost
    from provision.lab.status import HostStatus

_Path = click.Path(path_type=Path)


def _complete_hosts(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from provision.lab.fleet import fleets  # noqa: PLC0415 (the rest of the command starts faster without it)

    names = sorted({host for fleet in fleets() for host in fleet.hosts})
    hosts = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return hosts or _Path.shell_complete(context, parameter, incomplete)


def _complete_faults(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from provision.lab.hardware.faults import FAULTS  # noqa: PLC0415

    faults = [CompletionItem(name) for name in sorted(FAULTS) if incomplete and name.startswith(incomplete)]
    return faults or _complete_hosts(context, parameter, incomplete)


@click.group()
def lab() -> None:
    """Simulated hosts: real systemd and SSH in containers, simulated GPUs."""


@lab.command(short_help="Bring a fleet up, or what is missing of it.")
@click.argument("inventory", type=_Path, required=False)
@click.option("--hosts", type=click.IntRange(1, 240), help="Make so many alike hosts instead of the inventory's own.")
def up(inventory: Path | None, hosts: int | None) -> None:
    """Bring up one host for each host of INVENTORY, or whatever is missing of them."""
    from provision.lab import fleet  # noqa: PLC0415

    if inventory is None and hosts is None:
        raise UsageError("Which hosts? `provision lab up INVENTORY`, or `provision lab up --hosts 2` without one.")
    start = time.monotonic()
    with _progress() as report:
        made = fleet.up(inventory or Path(), hosts=hosts, report=report)
    addresses = ", ".join(f"{host.name} {host.address}" for host in list(made.hosts.values())[:4])
    more = f" and {len(made.hosts) - 4} more" if len(made.hosts) > 4 else ""  # noqa: PLR2004
    click.echo(f"{len(made.hosts)} simulated hosts up after {time.monotonic() - start:.1f} s: {addresses}{more}")
    click.echo(f"Next: provision bootstrap {inventory or made.overlay}")


@lab.command(short_help="Take a fleet away, whole.")
@click.argument("inventory", type=_Path, required=False)
@click.option("--all", "every", is_flag=True, help="Take every fleet of yours down.")
def down(inventory: Path | None, every: bool) -> None:
    """Take the fleet of INVENTORY away: hosts, disks, network, everything."""
    from provision.lab import fleet  # noqa: PLC0415

    if inventory is not None and every:
        raise UsageError("INVENTORY or --all, not both.")
    targets = [inventory] if inventory else fleet.inventories()
    if len(targets) > 1 and not every:
        raise UsageError(f"Which fleet? {_list(targets)}; or --all.")
    for target in targets:
        gone = fleet.down(target)
        click.echo(f"{target}: taken down" if gone else f"{target}: no fleet was up")
    if not targets:
        click.echo("No fleet was up")


@lab.command(short_help="Show the hosts of a fleet, or of all.")
@click.argument("inventory", type=_Path, required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def status(inventory: Path | None, as_json: bool) -> None:
    """Show the hosts of INVENTORY's fleet, or those of every fleet."""
    from provision.lab import fleet, status  # noqa: PLC0415

    shown = [_fleet(inventory)] if inventory else fleet.fleets()
    if as_json:
        described = [status.as_json(each) for each in shown]
        click.echo(json.dumps(described[0] if inventory else {"fleets": described}, indent=2))
        return
    for each in shown:
        Console().print(_table(each, status.read(each)))
    if not shown:
        click.echo("No fleet is up. Start one: provision lab up INVENTORY")


@lab.command(short_help="Log in on a host, or run a command.", context_settings={"ignore_unknown_options": True})
@click.argument(
    "words",
    nargs=-1,
    type=click.UNPROCESSED,
    metavar="[INVENTORY] HOST [-- COMMAND...]",
    shell_complete=_complete_hosts,
)
def ssh(words: tuple[str, ...]) -> None:
    """Log in on a host, or run a command there, as the fleet's user (who has sudo)."""
    from provision.lab import login  # noqa: PLC0415

    takes = 2 if words and _is_inventory(words[0]) else 1
    fleet, host, _ = _target(words[:takes], takes)
    command = login.ssh_command(fleet.directory, host)
    os.execvp(command[0], [*command, *words[takes:]])  # noqa: S606 (no shell)


@lab.command(short_help="Reboot a host, or switch it on.")
@click.argument("words", nargs=-1, metavar="[INVENTORY] HOST", shell_complete=_complete_hosts)
@click.option("--hard", is_flag=True, help="Cut the power instead of asking the host.")
def reboot(words: tuple[str, ...], hard: bool) -> None:
    """Reboot a host and wait until it answers; a host that is off is switched on."""
    from provision.lab import power  # noqa: PLC0415

    fleet, host, _ = _target(words, len(words))
    with _progress() as report:
        power.reboot(fleet, host, hard=hard, report=report)
    click.echo(f"{host.name} answers again")


class _FaultCommand(click.Command):
    """A command whose help lists the faults."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from provision.lab.hardware.faults import FAULTS  # noqa: PLC0415

        super().format_epilog(ctx, formatter)
        with formatter.section("Faults"):
            formatter.write_dl([(name, fault.help) for name, fault in sorted(FAULTS.items())])


@lab.command("break", cls=_FaultCommand, short_help="Break a host on purpose.")
@click.argument("words", nargs=-1, metavar="[INVENTORY] HOST FAULT", shell_complete=_complete_faults)
def break_(words: tuple[str, ...]) -> None:
    """Break a host in one of the ways listed below."""
    from provision.lab.hardware.faults import FAULTS  # noqa: PLC0415

    _, host, fault = _target(words, len(words), fault=True)
    FAULTS[fault].apply(host)
    click.echo(f"{host.name}: {fault}. Undo: provision lab mend {' '.join(words)}")


@lab.command(cls=_FaultCommand, short_help="Take a fault back.")
@click.argument("words", nargs=-1, metavar="[INVENTORY] HOST FAULT", shell_complete=_complete_faults)
def mend(words: tuple[str, ...]) -> None:
    """Take back what `provision lab break` did to a host."""
    from provision.lab.hardware.faults import FAULTS  # noqa: PLC0415

    _, host, fault = _target(words, len(words), fault=True)
    FAULTS[fault].mend(host)
    click.echo(f"{host.name}: {fault} is mended")


def _target(words: tuple[str, ...], count: int, *, fault: bool = False) -> tuple[LabFleet, LabHost, str]:
    """The fleet, host and fault that the words name; the inventory may be left out while it is clear."""
    wanted = 2 if fault else 1
    if len(words) != count or count not in {wanted, wanted + 1}:
        raise UsageError("Expected: " + ("[INVENTORY] HOST FAULT" if fault else "[INVENTORY] HOST"))
    inventory = Path(words[0]) if count == wanted + 1 else None
    name = words[count - wanted]
    fleet, host = _find(inventory, name)
    if fault:
        _known_fault(words[-1])
    return fleet, host, words[-1] if fault else ""


def _known_fault(name: str) -> None:
    from provision.lab.hardware.faults import FAULTS  # noqa: PLC0415

    if name not in FAULTS:
        raise UsageError(f"There is no fault {name}. Known: {', '.join(sorted(FAULTS))}.")


def _find(inventory: Path | None, name: str) -> tuple[LabFleet, LabHost]:
    from provision.lab.fleet import fleets  # noqa: PLC0415

    searched = [_fleet(inventory)] if inventory else fleets()
    found = [(fleet, fleet.hosts[name]) for fleet in searched if name in fleet.hosts]
    if len(found) > 1:
        raise UsageError(f"{name} is in several fleets. Name the inventory: {_list([f.inventory for f, _ in found])}.")
    if not found:
        known = ", ".join(host for fleet in searched for host in fleet.hosts) or "no fleet is up"
        raise LabError(f"There is no simulated host {name}. Hosts: {known}.")
    return found[0]


def _fleet(inventory: Path) -> LabFleet:
    from provision.lab.fleet import find  # noqa: PLC0415

    fleet = find(inventory)
    if fleet is None:
        raise LabError(f"{inventory}: no fleet is up. Start it: provision lab up {inventory}")
    return fleet


def _is_inventory(word: str) -> bool:
    return "/" in word or Path(word).is_dir()


def _list(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))


def _table(fleet: LabFleet, hosts: list[HostStatus]) -> Table:
    table = Table("HOST", "STATE", "ADDRESS", "HARDWARE", title=str(fleet.inventory), title_justify="left", box=None)
    for column in ("MEMORY", "DISK"):
        table.add_column(column, justify="right")
    colours = {"running": "green", "booting": "yellow"}
    for host in hosts:
        state = f"[{colours.get(host.state, 'red')}]{host.state}[/]"
        size = (f"{bytes_ / (1 << 20):,.0f} MiB" for bytes_ in (host.memory, host.disk))
        table.add_row(host.name, state, host.address, host.profile, *size)
    return table


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Say what goes on: one line that changes on a terminal, a line for each step elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        said: set[str] = set()  # what is waited for is reported at every look

        def say(text: str) -> None:
            if text not in said:
                click.echo(text, err=True)
            said.add(text)

        yield say
        return
    with console.status("Starting") as line:
        yield line.update
