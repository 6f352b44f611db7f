"""`provision status INVENTORY`: what is, now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from provision import exits
from provision.cli.fleet import inventory_argument, lab_option, load
from provision.serving.gateway import Gateway, Rotation, look, standing
from provision.serving.status import HostStatus, ReplicaStatus, survey


@click.command()
@inventory_argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document (docs/status.md).")
@lab_option
def status(*, inventory: Path, as_json: bool, lab: bool) -> int:
    """Show hosts, GPUs, units, Ray nodes, and whether each replica generates, by having it generate.

    Exit code 0 if all is well, 1 if anything is not.
    """
    fleet = load(inventory, lab)
    replicas = survey(fleet)
    gateways = look(fleet) if fleet.gateways else []
    problems = [problem for replica in replicas for problem in replica.problems]
    problems += [f"{one.host.name}: the gateway cannot be asked: {one.error}" for one in gateways if one.error]
    if as_json:
        click.echo(json.dumps(document(replicas, gateways), indent=2))
    else:
        console = Console(highlight=False)
        console.print(_hosts(replicas))
        console.print(_replicas(replicas, gateways))
        for problem in problems:
            console.print(f"[red]✗[/red] {problem}", markup=True)
    return exits.FAILED if problems else exits.OK


def document(replicas: list[ReplicaStatus], gateways: Sequence[Gateway] = ()) -> dict[str, Any]:
    """The status as docs/status.md describes it."""
    return {
        "version": 1,
        "hosts": [_host_document(host) for replica in replicas for host in replica.hosts],
        "replicas": [
            {
                "name": status.replica.name,
                "hosts": [host.name for host in status.replica.hosts],
                "head": status.replica.head.name,
                "url": status.endpoint.url,
                "model": status.endpoint.model,
                "healthy": status.healthy,
                "answer_ms": status.canary and status.canary["ms"],
                "ray_nodes": _ray(status),
                "rotation": _rotation(standing(gateways, status.replica.name)),
                "problems": status.problems,
            }
            for status in replicas
        ],
        "gateways": [
            {
                "name": one.host.name,
                "address": one.host.address,
                "error": one.error or None,
                "replicas": {name: _rotation(rotation) for name, rotation in one.replicas.items()},
            }
            for one in gateways
        ],
    }


def _rotation(rotation: Rotation | None) -> dict[str, Any] | None:
    return vars(rotation) if rotation else None


def _ray(status: ReplicaStatus) -> dict[str, int | None] | None:
    if len(status.hosts) == 1:
        return None
    return {"alive": status.ray_nodes, "expected": len(status.hosts)}


def _host_document(status: HostStatus) -> dict[str, Any]:
    facts = {name: status.facts.get(name) for name in ("boot_id", "uptime_s", "driver", "gpus", "gpu_error", "units")}
    return {
        "name": status.host.name,
        "address": status.host.address,
        "replica": status.replica.name,
        "reachable": status.error is None,
        "error": status.error,
        **facts,
    }


def _hosts(replicas: list[ReplicaStatus]) -> Table:
    table = Table("host", "replica", "driver", "GPUs", "units", box=None, pad_edge=False, header_style="bold")
    for replica in replicas:
        for host in replica.hosts:
            facts = host.facts
            driver = facts.get("driver") or "-"
            table.add_row(host.host.name, host.replica.name, driver, _gpus(host), _units(facts.get("units") or {}))
    return table


def _gpus(status: HostStatus) -> str:
    """How many of which GPU, and how hot."""
    if status.error:
        return "does not answer"
    gpus = status.facts["gpus"]
    if not gpus:
        return "none answer"
    names = ", ".join(dict.fromkeys(gpu["name"] for gpu in gpus))
    heat = sorted(int(gpu["temperature.gpu"]) for gpu in gpus if gpu["temperature.gpu"].isdigit())
    warmth = f", {heat[0]}-{heat[-1]} °C" if heat else ""
    return f"{len(gpus)} \N{MULTIPLICATION SIGN} {names}{warmth}"


def _units(units: dict[str, Any]) -> str:
    """Running units by name, and any other with its state."""
    said = [name if unit["active"] == "active" else f"{name} ({unit['active']})" for name, unit in units.items()]
    return "\n".join(said) or "-"


def _replicas(replicas: list[ReplicaStatus], gateways: Sequence[Gateway]) -> Table:
    columns = ["replica", "health", "model", "endpoint", "Ray nodes", *(["rotation"] if gateways else [])]
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for status in replicas:
        nodes = _ray(status)
        ray = (
            "-" if nodes is None else f"{nodes['alive'] if nodes['alive'] is not None else '?'} of {nodes['expected']}"
        )
        health = "[red]fails[/red]"
        if status.healthy and status.canary:
            health = f"[green]answers[/green] in {status.canary['ms']} ms"
        cells = [status.replica.name, health, status.endpoint.model, status.endpoint.url, ray]
        table.add_row(*cells, *([_rotated(standing(gateways, status.replica.name))] if gateways else []))
    return table


def _rotated(rotation: Rotation | None) -> str:
    """Whether the gateways send a replica requests, and how many it has."""
    if rotation is None:
        return "no gateway has it"
    by = f", by {rotation.by}" if rotation.by else ""
    why = f" ({rotation.check})" if rotation.state == "down" else ""
    return f"{rotation.state}{why}, {rotation.in_flight} in flight{by}"
