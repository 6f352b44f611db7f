"""`provision stack [INVENTORY]`: the versions of a deployment as one decision, and what ties them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from provision import exits
from provision.cli.fleet import lab_option, load
from provision.cli.words import counted
from provision.errors import InventoryError, UsageError
from provision.inventory import Fleet, Host
from provision.stack.lock import DEFAULT_LOCK, Lock, lock_path, read_lock
from provision.stack.parts import Part, parts
from provision.stack.rules import notes
from provision.stack.survey import HostVersions, Skew, asks_for, skews, survey

SWITCHED = {"CUDA toolkit": "cuda_toolkit", "NCCL (system)": "cuda_nccl"}


@click.command()
@click.argument("inventory", type=click.Path(path_type=Path), required=False)
@click.option("--hosts", "ask_hosts", is_flag=True, help="Compare with what the hosts have, in one round trip each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/stack.md).")
@lab_option
def stack(*, inventory: Path | None, ask_hosts: bool, as_json: bool, lab: bool) -> int:
    """Show the versions of a deployment, each with what ties it to the others; without INVENTORY the shipped ones.

    Exit code 0 if they fit each other (and the hosts have them); 65 if they cannot work together; with --hosts also 2
    if a host has others, 1 if hosts of one replica differ, 3 if hosts do not answer and the rest is fine.
    """
    if inventory is None and ask_hosts:
        raise UsageError("--hosts needs an inventory: provision stack INVENTORY --hosts")
    lock = read_lock(DEFAULT_LOCK if inventory is None else lock_path(inventory))
    if lock.problems:
        if not as_json:
            raise InventoryError(lock.problems)
        click.echo(json.dumps(document(lock, None, None), indent=2, ensure_ascii=False))
        return exits.INVALID
    fleet = None if inventory is None else load(inventory, lab)
    hosts = survey(fleet) if fleet and ask_hosts else None
    if as_json:
        click.echo(json.dumps(document(lock, fleet, hosts), indent=2, ensure_ascii=False))
    else:
        _show(lock, fleet, hosts)
    return exit_code(hosts or [])


def exit_code(hosts: Sequence[HostVersions]) -> int:
    """What the hosts come to: skew within a replica is the worst, since it may not even start."""
    if skews(hosts):
        return exits.FAILED
    if any(host.differs for host in hosts):
        return exits.PENDING
    return exits.UNREACHABLE if any(host.error for host in hosts) else exits.OK


def document(lock: Lock, fleet: Fleet | None, hosts: Sequence[HostVersions] | None) -> dict[str, Any]:
    """The stack as docs/stack.md describes it."""
    sound = not lock.problems
    return {
        "version": 1,
        "path": str(lock.path),
        "problems": [
            {"line": problem.line, "message": problem.message, "hint": problem.hint} for problem in lock.problems
        ],
        "parts": [_part(part, fleet) for part in parts(lock)] if sound else [],
        "notes": [*notes(lock.versions), *_strange(fleet)] if sound else [],
        "hosts": hosts and [_host(host) for host in hosts],
        "skew": None if hosts is None else [_skew(skew) for skew in skews(hosts)],
    }


def _strange(fleet: Fleet | None) -> Iterator[str]:
    """Settings that put another NCCL in the place of the one that vLLM's wheels bring along."""
    for variable in ("vllm_env", "ray_env"):
        for name in ("VLLM_NCCL_SO_PATH", "LD_PRELOAD"):
            hosts = [host.name for host in fleet.serving if _names(host, variable, name)] if fleet else []
            if hosts:
                yield (
                    f"{variable}.{name} is set for {', '.join(hosts)}. If it names another NCCL, vLLM has two: PyTorch "
                    "is linked with that of the wheels. Take it out."
                )


def _names(host: Host, variable: str, name: str) -> bool:
    value = host.variables.get(variable)
    return isinstance(value, dict) and name in value


def _part(part: Part, fleet: Fleet | None) -> dict[str, Any]:
    variable = SWITCHED.get(part.name)
    on = [host.name for host in fleet.serving if asks_for(host, variable)] if fleet and variable else None
    return {**dataclasses.asdict(part), "installed_on": on}


def _host(host: HostVersions) -> dict[str, Any]:
    return {
        "name": host.host.name,
        "replica": host.replica,
        "reachable": host.error is None,
        "error": host.error,
        "has": dict(host.has),
        "differs": [dataclasses.asdict(difference) for difference in host.differs],
    }


def _skew(skew: Skew) -> dict[str, Any]:
    return {"replica": skew.replica, "part": skew.part, "versions": dict(skew.versions), "message": skew.message}


def _show(lock: Lock, fleet: Fleet | None, hosts: Sequence[HostVersions] | None) -> None:
    console = Console(highlight=False)
    shipped = lock.path == DEFAULT_LOCK
    console.print(f"{escape(str(lock.path))}{' (shipped with provision)' if shipped else ''}", soft_wrap=True)
    for part in parts(lock):
        head = f"[bold]{part.name:<15}[/] {part.version or '-':<18} {_decided(part):<8}"
        console.print(f"{head} {escape(_reason(part, fleet))}", soft_wrap=True)
    for note in (*notes(lock.versions), *_strange(fleet)):
        console.print(f"note: {escape(note)}", soft_wrap=True)
    if hosts is not None and fleet is not None:
        for line in _hosts(hosts, fleet):
            console.print(line, soft_wrap=True)


def _decided(part: Part) -> str:
    return f"line {part.line}" if part.source == "lock" else part.source


def _reason(part: Part, fleet: Fleet | None) -> str:
    """Why a part is tied; of what is installed on demand, on how many hosts of the inventory."""
    variable = SWITCHED.get(part.name)
    if not fleet or not variable:
        return part.reason
    asking = sum(asks_for(host, variable) for host in fleet.serving)
    return f"{part.reason} ({asking} of {counted(len(fleet.serving), 'host')})"


def _hosts(hosts: Sequence[HostVersions], fleet: Fleet) -> Iterator[str]:
    """What the hosts have: skew first, then each difference, then those that could not be asked."""
    found = skews(hosts)
    yield from (f"[red]✗[/red] {escape(skew.message)}" for skew in found)
    for host in hosts:
        for difference in host.differs:
            told = f"{difference.part} is {difference.has or 'absent'}, expected {difference.expected}."
            yield f"[yellow]≠[/yellow] {escape(f'{host.host.name}: {told}')}"
    yield from (
        f"[red]✗[/red] {escape(host.host.name)} cannot be asked: {escape(host.error)}" for host in hosts if host.error
    )
    wrong = [host.host.name for host in hosts if host.differs]
    if wrong:
        yield f"  What would change:  provision plan {escape(str(fleet.path))} --limit {escape(','.join(wrong))}"
    elif not found and not any(host.error for host in hosts):
        yield f"{counted(len(hosts), 'host')} asked: all have these versions."
