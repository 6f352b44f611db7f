"""The gateways of a fleet: which replicas are in rotation, taking one out without a failed request, and back in.

Each gateway is asked over SSH by the program that the role gateway puts there. A replica is in rotation as far as every
gateway sends requests to it, and drained when none has a request in flight on it.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from provision.errors import ProvisionError
from provision.inventory import Fleet, Host, Replica
from provision.ssh import Answer, Call, call

PROGRAM = "/opt/provision/bin/provision-gateway"
NOT_FOUND = 127
ANSWER_S = 30
LOOK_S = 1.0  # between two looks
HICCUP_S = 60.0  # for which a gateway may not answer while something is waited for: a connection that broke, a reboot
ADMIT_S = 60  # until a replica that is allowed back has passed its checks
RUN = "run "  # how a drain is signed that a run began: any later run may end it
WORST = ("out", "down", "draining", "in")


class GatewayError(ProvisionError):
    """A gateway could not be asked, or did not do what it was told."""


@dataclass(frozen=True)
class Rotation:
    """What one gateway has of one replica.

    `state`: `in` (takes requests), `draining` (takes no new ones), `down` (its check fails), `out` (taken out by hand).
    `by`: who drained it, if anybody did.
    """

    state: str
    in_flight: int
    check: str
    by: str = ""

    @property
    def by_person(self) -> bool:
        """Whether a person took it out: no run takes it back in."""
        return bool(self.by) and not self.by.startswith(RUN)


@dataclass(frozen=True)
class Gateway:
    """What one gateway told. `missing`: there is none on that host yet."""

    host: Host
    replicas: dict[str, Rotation]
    error: str = ""
    missing: bool = False


@dataclass(frozen=True)
class Drained:
    """What became of a drain: requests that were still in flight when it ended, and the seconds that it took."""

    in_flight: int
    seconds: float


def look(fleet: Fleet) -> list[Gateway]:
    """Ask every gateway what it has of the replicas."""
    return _tell(fleet.gateways, "state")


def standing(gateways: Sequence[Gateway], replica: str) -> Rotation | None:
    """What holds for a replica over all gateways that told: the worst state, all requests, a person before a run."""
    told = [gateway.replicas[replica] for gateway in gateways if replica in gateway.replicas]
    if not told:
        return None
    worst = min(told, key=lambda one: WORST.index(one.state))
    by = next((one.by for kind in (True, False) for one in told if one.by and one.by_person is kind), "")
    return Rotation(worst.state, sum(one.in_flight for one in told), worst.check, by)


def others_serve(fleet: Fleet, gateways: Sequence[Gateway], replica: Replica) -> bool:
    """Whether somebody takes the requests while a replica is out; where there is no other replica, nobody can."""
    others = [one.name for one in fleet.replicas if one.name != replica.name]
    states = [standing(gateways, name) for name in others]
    return not others or any(state is not None and state.state == "in" for state in states)


def drain(
    fleet: Fleet,
    replica: Replica,
    deadline_s: float,
    *,
    by: str,
    on_look: Callable[[Rotation], object] = lambda _seen: None,
) -> Drained:
    """Send a replica no new requests, and wait until those in flight have ended, or the deadline has passed.

    `by` is kept at the gateways: a run takes back only what runs have drained. Raises GatewayError if a gateway that
    serves cannot be told or seen, before any request is lost; those that were told send it requests again.
    """
    begin = time.monotonic()
    before = look(fleet)
    _demand(before, replica, "drained")
    told = _tell(fleet.gateways, "drain", replica.name, by)
    try:
        _demand(told, replica, "drained")
        while True:
            seen = _seen(fleet, replica)
            on_look(seen)
            seconds = time.monotonic() - begin
            if seen.state == "in":
                raise GatewayError(f"{replica.name} was sent requests again by somebody else while it was drained.")
            if not seen.in_flight or seconds >= deadline_s:
                return Drained(seen.in_flight, seconds)
            time.sleep(LOOK_S)
    except GatewayError:
        took = {one.host.name for one in before if replica.name in one.replicas and not one.replicas[replica.name].by}
        _tell([one.host for one in told if not one.error and one.host.name in took], "admit", replica.name)
        raise


def admit(fleet: Fleet, replica: Replica, wait_s: float = ADMIT_S) -> float:
    """Send a replica requests again, and wait until every gateway does; the seconds that took.

    Raises GatewayError with what its check says if that does not come to pass.
    """
    begin = time.monotonic()
    let(fleet, replica)
    while (seen := _seen(fleet, replica)).state != "in":
        if time.monotonic() - begin > wait_s:
            raise GatewayError(
                f"{replica.name} is allowed back, but {wait_s:.0f} s later is still {seen.state}: its check says "
                f"{seen.check or 'nothing'}. It takes requests as soon as the check passes.\n"
                f"  See why:  provision status {fleet.path}  and on {replica.head.name}: journalctl -u vllm.service"
            )
        time.sleep(LOOK_S)
    return time.monotonic() - begin


def let(fleet: Fleet, replica: Replica) -> None:
    """Have the gateways send a replica requests again as soon as its check passes, and wait for nothing."""
    _demand(_tell(fleet.gateways, "admit", replica.name), replica, "admitted")


def deadline_of(fleet: Fleet) -> float:
    """Seconds that requests in flight have to end, by the inventory."""
    return float(str(fleet.gateways[0].setting("gateway_drain_timeout")))


def patience_of(replica: Replica) -> float:
    """Seconds until a replica that was started must generate, by the inventory."""
    return float(str(replica.head.setting("vllm_start_timeout") or ADMIT_S))


def unaware(gateways: Sequence[Gateway], replica: Replica) -> list[Host]:
    """The gateways that send a replica requests which others hold drained: they are new, or were installed anew."""
    known = [one for one in gateways if replica.name in one.replicas]
    hosts = [one.host for one in known if not one.replicas[replica.name].by]
    return hosts if len(hosts) < len(known) else []


def spread(gateways: Sequence[Gateway], replica: Replica, by: str) -> None:
    """Have the gateways that know nothing of a drain hold it as well. Raises GatewayError if one cannot be told."""
    _demand(_tell(unaware(gateways, replica), "drain", replica.name, by), replica, "drained")


def look_again(fleet: Fleet) -> list[Gateway]:
    """What every gateway has of the replicas. Silence for a while is no answer."""
    deadline = time.monotonic() + HICCUP_S
    gateways = look(fleet)
    while any(one.error and not one.missing for one in gateways) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        gateways = look(fleet)
    return gateways


def _seen(fleet: Fleet, replica: Replica) -> Rotation:
    """What holds for a replica now, by all gateways that know it."""
    gateways = look_again(fleet)
    _demand(gateways, replica, "seen")
    found = standing(gateways, replica.name)
    if found is None:
        names = ", ".join(gateway.host.name for gateway in gateways)
        raise GatewayError(
            f"No gateway ({names}) knows {replica.name}. Bring them to what the inventory says:  "
            f"provision bootstrap {fleet.path} --stage gateway"
        )
    return found


def _demand(gateways: Sequence[Gateway], replica: Replica, done: str) -> None:
    """Every gateway that serves must have answered: one that did not may go on sending requests."""
    for gateway in gateways:
        if gateway.error and not gateway.missing:
            raise GatewayError(f"{replica.name} could not be {done} at gateway {gateway.host.name}: {gateway.error}")
    if all(gateway.missing for gateway in gateways):
        names = ", ".join(gateway.host.name for gateway in gateways)
        raise GatewayError(f"{replica.name} could not be {done}: there is no gateway on {names} yet.")


def _tell(hosts: Sequence[Host], *arguments: str) -> list[Gateway]:
    script = f"[ -x {PROGRAM} ] || exit {NOT_FOUND}; exec {PROGRAM} {shlex.join(arguments)}"
    return [_gateway(answer) for answer in call([Call(host, script) for host in hosts], timeout=ANSWER_S)]


def _gateway(answer: Answer) -> Gateway:
    if answer.trouble:
        return Gateway(answer.host, {}, answer.trouble.message)
    if answer.code == NOT_FOUND:
        return Gateway(answer.host, {}, "there is no gateway yet", missing=True)
    if answer.code:
        return Gateway(answer.host, {}, answer.error or f"its program ended with {answer.code}")
    if not answer.text.strip():
        return Gateway(answer.host, {})
    try:
        told = json.loads(answer.text)
        return Gateway(
            answer.host,
            {
                name: Rotation(one["rotation"], int(one["in_flight"]), one["check"], one["by"])
                for name, one in told.items()
            },
        )
    except (KeyError, TypeError, ValueError):
        return Gateway(answer.host, {}, f"it said what cannot be read: {answer.text[:200]}")
