"""`provision weights ...`: what lies where of a model, fetching it, verifying it, switching, removing what is old."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live

from provision import exits
from provision.cli.bootstrap import perform
from provision.cli.fleet import inventory_argument, lab_option, load
from provision.cli.options import Options
from provision.cli.weights_screen import Row, row, table, told_garbage, told_switched, told_verified
from provision.errors import UsageError
from provision.inventory import Fleet, Host, select
from provision.weights.ask import READ_S, SETTINGS, Told, ask
from provision.weights.chain import address_of, chains

FETCHING = ("site", "host", "tools", "transfer")  # the stages that begin to fetch
EVERY_S = 2.0
limit_option = click.option(
    "-l", "--limit", metavar="PATTERN", help="Only these hosts, groups or replicas, as for ansible-playbook."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON (docs/weights.md).")


@click.group()
def weights() -> None:
    """The model's files on all hosts: fetched once, verified, handed on, switched."""


def _fleet(inventory: Path, lab: bool, limit: str | None) -> tuple[Fleet, list[Host]]:
    fleet = load(inventory, lab, SETTINGS)
    hosts = _with_model(select(fleet, limit))
    if not hosts:
        raise UsageError(f"No host of {inventory} has a model: set weights_repo in its group_vars/serving.yml.")
    return fleet, hosts


def _with_model(hosts: Sequence[Host]) -> list[Host]:
    return [host for host in hosts if host.variables.get("weights_repo")]


def _code(told: Sequence[Told], is_bad: Callable[[Told], bool] = lambda _one: False, bad: int = exits.FAILED) -> int:
    if any((one.why and not one.is_gone) for one in told):
        return exits.FAILED
    if any(is_bad(one) for one in told if not one.why):
        return bad
    return exits.UNREACHABLE if any(one.is_gone for one in told) else exits.OK


def _print(lines: Sequence[str]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    for line in lines:
        console.print(line)


@weights.command()
@inventory_argument
@limit_option
@click.option("--watch", is_flag=True, help="Look every 2 s, until nothing is fetched any more.")
@json_option
@lab_option
def plan(*, inventory: Path, limit: str | None, watch: bool, as_json: bool, lab: bool) -> int:
    """What each host has, what a fetch would bring, over which chain; nothing is changed.

    Exit code 0 if every host holds the model whole, 2 if something is missing.
    """
    fleet, hosts = _fleet(inventory, lab, limit)
    rows = _follow(hosts, as_json, once=not watch)
    if not as_json:
        _print(_chain_lines(fleet, hosts))
    return _rows_code(rows)


def _chain_lines(fleet: Fleet, hosts: Sequence[Host]) -> list[str]:
    names = {address_of(host): host.name for host in fleet.serving}
    repos = {str(host.variables["weights_repo"]) for host in hosts}
    ways = {repo: [names[address] for address in chain] for repo, chain in chains(fleet).items() if repo in repos}
    return [f"[dim]{repo} is handed on: source → {' → '.join(way)}[/]" for repo, way in sorted(ways.items())]


def _rows_code(rows: Sequence[Row]) -> int:
    if any(each.failed for each in rows):
        return exits.FAILED
    if any(not each.whole and not each.gone for each in rows):
        return exits.PENDING
    return exits.UNREACHABLE if any(each.gone for each in rows) else exits.OK


def _follow(hosts: Sequence[Host], as_json: bool, once: bool) -> list[Row]:
    """Show how far all hosts are, until none of them is at work."""
    console = Console(highlight=False)
    moves = console.is_terminal and not (once or as_json)
    with Live(console=console, auto_refresh=False) if moves else nullcontext() as live:
        while True:
            rows = [row(told) for told in ask(hosts, "status")]
            if as_json:
                click.echo(json.dumps({"time": time.time(), "hosts": [each.document() for each in rows]}))
            elif live:
                live.update(table(rows), refresh=True)
            else:
                console.print(table(rows))
            if once or not any(each.fetches for each in rows):
                return rows
            time.sleep(EVERY_S)


@weights.command()
@inventory_argument
@limit_option
@json_option
@lab_option
def fetch(*, inventory: Path, limit: str | None, as_json: bool, lab: bool) -> int:
    """Fetch the model onto every host, verify it, put it in place and switch `current` to it: stages of bootstrap."""
    fleet, hosts = _fleet(inventory, lab, limit)
    return _fetch(fleet, hosts, inventory, limit, as_json, lab)


def _fetch(fleet: Fleet, hosts: Sequence[Host], inventory: Path, limit: str | None, as_json: bool, lab: bool) -> int:
    code = perform(fleet, inventory, Options(limit, FETCHING, lab=lab, as_json=as_json))
    if code not in (exits.OK, exits.UNREACHABLE):
        return code
    _follow(hosts, as_json, once=False)
    return perform(fleet, inventory, Options(limit, ("weights",), lab=lab, as_json=as_json))


@weights.command()
@inventory_argument
@limit_option
@json_option
@lab_option
def distribute(*, inventory: Path, limit: str | None, as_json: bool, lab: bool) -> int:
    """Bring the model from the hosts that have it whole to those that have not: a fetch that needs no uplink."""
    fleet, hosts = _fleet(inventory, lab, limit)
    rows = [row(told) for told in ask(_with_model(fleet.serving), "status")]
    if not any(each.whole for each in rows):
        click.echo(
            "No host has the model whole, so there is nothing to hand on. Fetch it: provision weights fetch", err=True
        )
        return exits.FAILED
    return _fetch(fleet, hosts, inventory, limit, as_json, lab)


@weights.command()
@inventory_argument
@limit_option
@json_option
@lab_option
def verify(*, inventory: Path, limit: str | None, as_json: bool, lab: bool) -> int:
    """Read every byte on every host again, with all CPUs, and name the files that are not what they should be.

    A file that is wrong is fetched again, it alone, by the next fetch or bootstrap. Exit code 2 if any is.
    """
    _, hosts = _fleet(inventory, lab, limit)
    told = ask(hosts, "verify", timeout=READ_S)
    code = _code(told, lambda one: bool(one.facts["wrong"]), exits.PENDING)
    _say(as_json, told, told_verified(told, inventory))
    return code


@weights.command()
@inventory_argument
@limit_option
@click.option("--to", "target", metavar="COMMIT", help="This commit, or `previous` [default: what the inventory says].")
@json_option
@lab_option
def switch(*, inventory: Path, limit: str | None, target: str | None, as_json: bool, lab: bool) -> int:
    """Point `current` to a commit on all hosts, if all of them hold it whole; else on none."""
    _, hosts = _fleet(inventory, lab, limit)
    before = ask(hosts, "status")
    if (code := _code(before)) != exits.OK:
        _say(as_json, before, told_switched(before, inventory, ""))
        return code
    found = {_target(one, target) for one in before}
    if len(found) != 1 or not min(found):
        raise UsageError(
            f"The hosts do not agree on what {target or 'the inventory'} means: {_listed(before, target)}."
        )
    (commit,) = found
    missing = [one.host.name for one in before if not _holds(one, commit)]
    if missing:
        click.echo(
            f"{commit[:12]} is not whole on {', '.join(missing)}, so nothing was switched. Fetch it first.", err=True
        )
        return exits.FAILED
    told = ask(hosts, "switch", commit)
    _say(as_json, told, told_switched(told, inventory, commit))
    return _code(told)


def _target(one: Told, target: str | None) -> str:
    return str(one.facts["previous"] if target == "previous" else target or one.facts["commit"])


def _listed(told: Sequence[Told], target: str | None) -> str:
    return ", ".join(f"{one.host.name} {_target(one, target)[:12] or 'none'}" for one in told)


def _holds(one: Told, commit: str) -> bool:
    return any(each["commit"] == commit and each["whole"] for each in one.facts["commits"])


@weights.command()
@inventory_argument
@limit_option
@click.option("--yes", is_flag=True, help="Remove what is shown; without it nothing is removed.")
@json_option
@lab_option
def gc(*, inventory: Path, limit: str | None, yes: bool, as_json: bool, lab: bool) -> int:
    """Show the commits that nobody needs, and with --yes remove them.

    Kept are what any host of the inventory serves, what was served before, what the inventory asks for, and whatever a
    process has open.
    Exit code 2 if something could be removed and was not.
    """
    fleet, hosts = _fleet(inventory, lab, limit)
    # Only the head of a replica says what is served; its other hosts need the same.
    everywhere = ask(_with_model(fleet.serving), "status")
    served = [each for one in everywhere for each in one.facts.get("in_use", ())]
    told = ask(hosts, "collect" if yes else "garbage", timeout=READ_S if yes else 60, keep=served)
    _say(as_json, told, told_garbage(told, inventory))
    return _code(told, lambda one: bool(one.facts["commits"]) and not yes, exits.PENDING)


def _say(as_json: bool, told: Sequence[Told], lines: Sequence[str]) -> None:
    if as_json:
        click.echo(json.dumps({"hosts": [_document(one) for one in told]}))
    else:
        _print(lines)


def _document(one: Told) -> dict[str, Any]:
    return {"name": one.host.name, "reachable": not one.is_gone, "error": one.why or None, **one.facts}
