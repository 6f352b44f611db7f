"""Restarting a replica: its units in the order in which they depend on each other, then a generated token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from provision.errors import ProvisionError
from provision.inventory import Fleet, Host, Replica
from provision.serving.gateway import patience_of
from provision.serving.status import survey
from provision.ssh import Call, call

UNITS_S = 180  # for systemctl to come back
LOOK_S = 5.0


class RestartError(ProvisionError):
    """A unit did not restart, or the replica does not generate afterwards."""


def restart(fleet: Fleet, replica: Replica, *, on_step: Callable[[str], object] = lambda _said: None) -> None:
    """Restart all that serves on a replica's hosts, and wait until it generates. Raises RestartError if it does not."""
    for said, hosts, command in steps(replica):
        on_step(f"{replica.name}: {said}")
        _do(replica, hosts, command)
    on_step(f"{replica.name}: waiting for a generated token")
    _wait(fleet, replica)


def steps(replica: Replica) -> Iterator[tuple[str, Sequence[Host], str]]:
    """What is done, in order: a sentence, where, and root's command.

    vLLM stops first. Where Ray joins the hosts, its head has vLLM start, which waits for the workers to be back: they
    are stopped before, since one that stops later would end the engine that begins.
    """
    head, workers = replica.head, replica.hosts[1:]
    if not workers:
        yield f"restarting vLLM on {head.name}", [head], "systemctl restart vllm.service"
        return
    names = ", ".join(host.name for host in workers)
    yield f"stopping vLLM on {head.name}", [head], "systemctl stop vllm.service"
    if replica.joined_by_ray:
        yield f"stopping Ray on {names}", workers, "systemctl stop ray-worker.service"
        yield f"restarting Ray on {head.name}", [head], "systemctl restart ray-head.service"
        yield f"starting Ray on {names}", workers, "systemctl start ray-worker.service"
    else:
        yield f"restarting vLLM on {names}", workers, "systemctl restart vllm.service"
    yield f"starting vLLM on {head.name}", [head], "systemctl start vllm.service"


def _do(replica: Replica, hosts: Sequence[Host], command: str) -> None:
    for answer in call([Call(host, f"{command} 2>&1") for host in hosts], timeout=UNITS_S):
        if answer.trouble or answer.code:
            why = answer.trouble.message if answer.trouble else (answer.text.strip() or answer.error)
            raise RestartError(
                f"{replica.name}: {command} did not succeed on {answer.host.name}: {why}\n"
                f"  {_next(replica)}\n  Look there:  systemctl status {command.rpartition(' ')[2]}"
            )


def _wait(fleet: Fleet, replica: Replica) -> None:
    deadline = time.monotonic() + patience_of(replica)
    alone = replace(fleet, replicas=(replica,))
    while True:
        (status,) = survey(alone)
        if status.healthy:
            return
        if time.monotonic() > deadline:
            raise RestartError(
                f"{replica.name} does not generate: {' '.join(status.problems)}\n"
                f"  {_next(replica)}\n  Look on {replica.head.name}:  journalctl -u vllm.service"
            )
        time.sleep(LOOK_S)


def _next(replica: Replica) -> str:
    return (
        f"{replica.name} stays out of rotation, and the other replicas serve on. Once it generates again, either of "
        "provision serve admit and provision bootstrap takes it back."
    )
