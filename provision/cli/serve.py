"""`provision serve drain|admit|restart INVENTORY REPLICA`: one replica out of rotation, and back in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from provision import exits
from provision.cli.bootstrap import perform
from provision.cli.fleet import inventory_argument, lab_option, load
from provision.cli.options import Options
from provision.converge.earlier import STAGES, as_it_was, earlier
from provision.converge.identity import clock
from provision.converge.lease import Lease
from provision.converge.lock import locked
from provision.errors import UsageError
from provision.inventory import Fleet, Replica
from provision.inventory.schema import nearest
from provision.serving import gateway, restart
from provision.serving.gateway import Gateway, Rotation
from provision.weights.ask import commit_of

replica_argument = click.argument("name", metavar="REPLICA")
deadline_option = click.option(
    "--deadline",
    type=click.IntRange(0),
    metavar="SECONDS",
    help="For requests in flight [default: gateway_drain_timeout].",
)
BY = "provision serve drain"
RESTART = gateway.RUN + "of provision serve restart"  # a run may end it: whoever restarted it is gone


@click.group()
def serve() -> None:
    """Take one replica out of rotation at the gateways and back in; between the two restart it, or have it go back."""


@serve.command(short_help="Send a replica no new requests, and wait for those in flight.")
@inventory_argument
@replica_argument
@deadline_option
@lab_option
def drain(*, inventory: Path, name: str, deadline: int | None, lab: bool) -> int:
    """Send REPLICA no new requests, and wait until those in flight have ended.

    It stays out until `provision serve admit`; a bootstrap leaves it out, too. Exit code 1 if the deadline came first.
    """
    fleet, replica = _find(inventory, name, lab)
    _expect_gateway(fleet)
    with _said_if_interrupted(f"{name} may be drained by now.\n  Back in:  provision serve admit {fleet.path} {name}"):
        left = _drain(fleet, replica, deadline, BY)
    if not left:
        click.echo(f"  Back in:  provision serve admit {fleet.path} {name}")
    return 1 if left else 0


@serve.command(short_help="Send a replica requests again.")
@inventory_argument
@replica_argument
@lab_option
def admit(*, inventory: Path, name: str, lab: bool) -> None:
    """Send REPLICA requests again, and wait until every gateway does."""
    fleet, replica = _find(inventory, name, lab)
    _expect_gateway(fleet)
    _admit(fleet, replica)


@serve.command("restart", short_help="Drain a replica, restart it, and admit it once it generates.")
@inventory_argument
@replica_argument
@deadline_option
@lab_option
def restart_command(*, inventory: Path, name: str, deadline: int | None, lab: bool) -> None:
    """Drain REPLICA, restart its units in order, wait until it generates a token, and admit it.

    If it does not come to that, it stays drained, and the others serve on. What was drained before stays drained. The
    only replica in rotation is left alone, as is one that a run is changing.
    """
    fleet, replica = _find(inventory, name, lab, ["vllm_start_timeout"])
    with locked(fleet.path), Lease(replica.hosts, f"restart-of-{name}"):
        seen = gateway.look(fleet) if fleet.gateways else []
        now = gateway.standing(seen, name)
        if fleet.gateways:
            _expect_others(fleet, seen, replica, now)
        else:
            click.echo(f"There is no gateway: whoever asks {name} meanwhile is refused.")
        with _said_if_interrupted(
            f"{name} may be drained, and units of it stopped.\n"
            f"  Start them and take it back:  provision bootstrap {fleet.path} --limit {name}\n"
            f"  Or begin again:               provision serve restart {fleet.path} {name}"
        ):
            if fleet.gateways:
                _drain(fleet, replica, deadline, now.by if now and now.by_person else RESTART)
            restart.restart(fleet, replica, on_step=click.echo)
        if now and now.by_person:
            click.echo(f"{name} generates, and stays drained:  provision serve admit {fleet.path} {name}")
        elif fleet.gateways:
            _admit(fleet, replica)


@serve.command(short_help="Bring a replica back to what it served before.")
@inventory_argument
@replica_argument
@click.option("--to", "run", metavar="RUN", help="What this run left [default: the newest that left something else].")
@click.option("-C", "--check", is_flag=True, help="Change nothing; say what would change (exit code 2 if anything).")
@click.option("-D", "--diff", is_flag=True, help="Show changed files line by line.")
@lab_option
def rollback(*, inventory: Path, name: str, run: str | None, check: bool, diff: bool, lab: bool) -> int:
    """Bring REPLICA back to what it served by the inventory of an earlier run: model, arguments, vLLM and Ray.

    It is drained, changed and admitted as by a bootstrap, which its host's driver and settings do not take part in.
    INVENTORY is left as it is: change it back, too, or the next bootstrap brings REPLICA forward again.
    """
    fleet, replica = _find(inventory, name, lab)
    record = earlier(fleet, replica, run)
    when = clock(str(record.facts["started"]))
    click.echo(f"{name} {'would go' if check else 'goes'} back to what run {record.id} of {when} left.", err=True)
    options = Options(limit=name, stages=STAGES, check=check, diff=diff, lab=lab, back_to=record.id)
    then = as_it_was(fleet, replica, record)
    for host in (host for one in then.replicas if one.name == name for host in one.hosts[:1]):
        if not commit_of(host):
            click.echo("Its weights were those of a branch or tag, and will be those that it names today.", err=True)
        if host.setting("vllm_served_model_name") != replica.head.setting("vllm_served_model_name"):
            click.echo(f"It answers to the name {host.setting('vllm_served_model_name')} again.", err=True)
    code = perform(then, inventory, options)
    if code == exits.OK and not check:
        click.echo(f"\n{inventory} still says otherwise: until it is changed, a bootstrap brings {name} forward again.")
    return code


@contextmanager
def _said_if_interrupted(said: str) -> Iterator[None]:
    """Whoever presses Ctrl-C is told how things are left."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(said, err=True)
        raise


def _find(inventory: Path, name: str, lab: bool, asked: list[str] | None = None) -> tuple[Fleet, Replica]:
    fleet = load(inventory, lab, asked or [])
    replicas = {replica.name: replica for replica in fleet.replicas}
    if name not in replicas:
        near = nearest(name, replicas)
        more = f"Did you mean {near}?" if near else f"It has {', '.join(replicas)}."
        raise UsageError(f"{inventory} has no replica {name}. {more}")
    return fleet, replicas[name]


def _expect_gateway(fleet: Fleet) -> None:
    if not fleet.gateways:
        raise UsageError(
            f"{fleet.path} has no gateway, so there is no rotation.\n"
            "  Name its hosts in a group gateway (docs/gateway.md), then: provision bootstrap"
        )


def _expect_others(fleet: Fleet, seen: Sequence[Gateway], replica: Replica, now: Rotation | None) -> None:
    if now and now.state == "in" and not gateway.others_serve(fleet, seen, replica):
        raise UsageError(
            f"{replica.name} is the only replica in rotation: nobody would serve while it restarts.\n"
            f"  Why the others are not:      provision status {fleet.path}\n"
            f"  To restart it all the same:  provision serve drain {fleet.path} {replica.name}  and run this again"
        )


def _drain(fleet: Fleet, replica: Replica, deadline: int | None, by: str) -> int:
    """The requests that were still in flight at the deadline."""
    told: set[int] = set()

    def show(seen: Rotation) -> None:
        if seen.in_flight and seen.in_flight not in told:
            told.add(seen.in_flight)
            click.echo(f"{replica.name} is draining: {seen.in_flight} in flight", err=True)

    wait = gateway.deadline_of(fleet) if deadline is None else float(deadline)
    done = gateway.drain(fleet, replica, wait, by=by, on_look=show)
    if done.in_flight:
        click.echo(
            f"{replica.name} gets no new requests; after {done.seconds:.0f} s {done.in_flight} are still in flight."
        )
    else:
        click.echo(f"{replica.name} is drained, after {done.seconds:.0f} s.")
    return done.in_flight


def _admit(fleet: Fleet, replica: Replica) -> None:
    seconds = gateway.admit(fleet, replica)
    click.echo(f"{replica.name} is in rotation, after {seconds:.0f} s.")
