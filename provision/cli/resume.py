"""`provision resume [INVENTORY]`: go on with the last run that did not come to its end."""

from __future__ import annotations

from pathlib import Path

import click

from provision import exits
from provision.cli.bootstrap import perform
from provision.cli.fleet import load
from provision.cli.history import ending
from provision.cli.options import Options
from provision.converge.earlier import as_it_was, earlier
from provision.converge.history import RunRecord, last_unfinished, runs
from provision.converge.identity import clock
from provision.converge.outcome import BAD
from provision.errors import UsageError
from provision.inventory import Fleet

SHOWN = 8  # hosts that are told of


@click.command()
@click.argument("inventory", type=click.Path(path_type=Path), required=False)
@click.option("-D", "--diff", is_flag=True, help="Show changed files line by line.")
@click.option("-v", "--verbose", count=True, help="Show Ansible's own text; -vv and more as for ansible-playbook.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines (docs/events.md), nothing else.")
def resume(*, inventory: Path | None, diff: bool, verbose: int, as_json: bool) -> int:
    """Go on with the last run of INVENTORY (or of any) that died, was interrupted or failed on some host.

    It asks for the same hosts and stages; what the receipts prove to stand is not visited again.
    """
    record = last_unfinished(inventory)
    if record is None:
        if not as_json:
            click.echo(f"Nothing to resume{f' for {inventory}' if inventory else ''}: every run came to its end.")
        return exits.OK
    if not as_json:
        for text in told(record):
            click.echo(text, err=True)
    _expect_nothing_went_back(record)
    where = inventory or record.inventory
    asked = options(record, verbose=verbose, as_json=as_json, diff=diff)
    return perform(back_by(load(where, record.lab), record), where, asked)


def _expect_nothing_went_back(record: RunRecord) -> None:
    """What was brought back since would be brought forward again, which nobody asked for by this word."""
    for run in runs(record.inventory, lab=record.lab):
        if run.id > record.id and run.facts.get("back_to") and not run.check:
            raise UsageError(
                f"Since run {record.id}, {run.facts.get('limit')} was brought back to what it served before "
                f"(run {run.id}); to resume would bring it forward again.\n"
                f"  Have the inventory say what is wanted, then:  provision bootstrap {record.inventory}"
            )


def back_by(fleet: Fleet, record: RunRecord) -> Fleet:
    """The fleet by the inventory that a run went by: that of the run to which it went back, or the one there is."""
    back_to = record.facts.get("back_to")
    if not back_to:
        return fleet
    name = record.facts.get("limit")
    replica = next((one for one in fleet.replicas if one.name == name), None)
    if replica is None:
        raise UsageError(f"Run {record.id} brought {name} back, which {fleet.path} has no more.")
    return as_it_was(fleet, replica, earlier(fleet, replica, str(back_to)))


def options(record: RunRecord, *, verbose: int = 0, as_json: bool = False, diff: bool = False) -> Options:
    """What that run was asked for, for a run that continues it."""
    facts = record.facts
    limit = facts.get("limit")
    if str(limit or "").startswith("@"):  # what such a limit means has changed since
        limit = ",".join(record.hosts)
    stages = facts.get("asked_stages", facts.get("stages")) or ()
    forks, reboots = facts.get("forks"), facts.get("reboots")
    return Options(
        limit=limit,
        stages=tuple(map(str, stages)),
        full=bool(facts.get("full")),
        forks=int(forks) if forks else None,
        verbose=verbose,
        as_json=as_json,
        diff=diff,
        lab=record.lab,
        resumes=record.id,
        engine=str(facts.get("engine") or "local"),
        ray_address=facts.get("ray_address"),
        back_to=facts.get("back_to"),
        reboots=None if reboots is None else tuple(map(str, reboots)),
        canary=bool(facts.get("canary")) and record.state in ("died", "interrupted"),  # else it goes on with the others
    )


def told(record: RunRecord) -> list[str]:
    """What is resumed: which run, how it ended, and where each of its hosts stood."""
    how = {"died": f"died at about {clock(record.last_seen)}", "interrupted": "was interrupted"}
    ended = how.get(record.state, f"ended as {ending(record)}")
    who = record.who or record.facts.get("user")
    lines = [
        f"Resuming {record.id}, begun at {clock(str(record.facts.get('started', '')))} by {who}; it {ended}.",
    ]
    hosts = [host for host in record.hosts if host in record.outcome.last or host in record.statuses]
    for host in hosts[:SHOWN]:
        lines.append(f"  {host} {_stood(record, host)}")
    if len(hosts) > SHOWN:
        lines.append(f"  and {len(hosts) - SHOWN} more: provision show {record.id}")
    return lines


def _stood(record: RunRecord, host: str) -> str:
    last, status = record.outcome.last.get(host), record.statuses.get(host)
    if host in record.outcome.running:
        return f"was in {last}"
    if status in BAD:
        word = str(status).replace("_", " ")
        return f"{'was' if status != 'failed' else 'had'} {word}" + (f", last in {last}" if last else "")
    return f"had done {last}" if last else "had begun nothing"
