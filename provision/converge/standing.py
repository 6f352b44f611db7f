"""Which stages of which hosts provably stand, which are to be visited and why, and in which waves.

A stage stands on a host if it left a receipt there, the receipt was made from the inputs that hold now, and verifying
it finds nothing. Whatever is not known counts as not standing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from provision.converge.inputs import CODE, Inputs, inputs_of
from provision.converge.stages import DISRUPTIVE, FOLLOWERS, MENDABLE, REPLICA_STAGES, WHOLE_STAGES, stages_of
from provision.drift import HostReceipts, StageReceipt, verify
from provision.drift.receipts import HARMLESS
from provision.inventory import Fleet, Host, Replica

NAMED = 3  # resources in a reason
REBOOT = "host_reboot"  # the module that says why a host must be rebooted


@dataclass(frozen=True)
class Visit:
    """A stage that is to run on a host, and why.

    `kind`: `first` (no receipt of any stage), `unfinished` (none of this stage, or someone is at work there), `inputs`
    (`names` tells which variables changed), `code` (the roles did), `drift`, `asked` (--full), `follows`.
    """

    stage: str
    kind: str
    why: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Standing:
    """What every host told, what it should have told, and what follows: visits by host, hosts by wave."""

    receipts: Mapping[str, HostReceipts]
    inputs: Inputs
    visits: Mapping[str, tuple[Visit, ...]]
    waves: tuple[tuple[str, ...], ...]

    def visited(self, host: str) -> tuple[str, ...]:
        """The stages that are to run on a host."""
        return tuple(visit.stage for visit in self.visits.get(host, ()))

    def mendable(self) -> dict[str, tuple[str, ...]]:
        """By host, the stages in which somebody else changed what the host can set right by itself, unnoticed."""
        found = {
            name: tuple(
                visit.stage for visit in own if visit.stage in MENDABLE and not _is_deep(visit, self.receipts[name])
            )
            for name, own in self.visits.items()
        }
        return {name: stages for name, stages in found.items() if stages}


def mended(fleet: Fleet, standing: Standing, told: Sequence[HostReceipts], stages: Sequence[str]) -> Standing:
    """What stands after some hosts have set right what they can. One that fell silent is as it was."""
    now = {host.host: host for host in told if not host.trouble}
    return decide(fleet, {**standing.receipts, **now}, standing.inputs, stages)


def stand(
    fleet: Fleet,
    hosts: Sequence[Host],
    stages: Sequence[str],
    *,
    full: bool = False,
    who: bool = True,
    on_host: Callable[[HostReceipts], None] = lambda _told: None,
) -> Standing:
    """Ask every host once, all at once, and decide. Hosts that cannot be asked have no visits and are in no wave."""
    told = {receipts.host: receipts for receipts in verify(hosts, stages, who=who, follow=True, on_host=on_host)}
    return decide(fleet, told, inputs_of(fleet), stages, full=full)


def decide(
    fleet: Fleet, told: Mapping[str, HostReceipts], inputs: Inputs, stages: Sequence[str], *, full: bool = False
) -> Standing:
    """The decision alone, from what the hosts told."""
    visits: dict[str, dict[str, Visit]] = {}
    for name, host in told.items():
        if not host.trouble:
            own = stages_of(fleet, name, stages, host.stages)
            found = {stage: _visit(host, stage, inputs[name][stage], full) for stage in own}
            visits[name] = {stage: visit for stage, visit in found.items() if visit}
            _follow(visits[name], host, own)
    _together(fleet, visits, stages)
    ordered = {name: tuple(own[stage] for stage in stages if stage in own) for name, own in visits.items() if own}
    return Standing(told, inputs, ordered, tuple(_waves(fleet, told, ordered)))


def less_reboots(
    fleet: Fleet, standing: Standing, hosts: Collection[str], stages: Sequence[str], full: bool
) -> Standing:
    """What is to be visited where the reboots that wait on some hosts are left to another run."""
    told = {name: _less_reboot(host) if name in hosts else host for name, host in standing.receipts.items()}
    return decide(fleet, told, standing.inputs, stages, full=full)


def _less_reboot(host: HostReceipts) -> HostReceipts:
    stages = {
        name: replace(own, findings=tuple(one for one in own.findings if one.module != REBOOT))
        for name, own in host.stages.items()
    }
    return replace(host, stages=stages)


def reboot_reasons(host: HostReceipts) -> tuple[str, ...]:
    """Why a host waits to be rebooted, if it does."""
    found = (one for own in host.stages.values() for one in own.findings if one.module == REBOOT)
    return tuple(dict.fromkeys(reason for one in found for reason in one.before.splitlines()))


def _visit(host: HostReceipts, stage: str, wanted: Mapping[str, str], full: bool) -> Visit | None:
    if full:
        return Visit(stage, "asked", "all stages were asked for")
    if host.busy:
        return Visit(stage, "unfinished", f"process {host.busy.pid} of an earlier run is at work there")
    receipt = host.stages.get(stage)
    if receipt:
        return _judged(stage, receipt, wanted)
    if host.stages:
        return Visit(stage, "unfinished", "no run has finished it yet")
    return Visit(stage, "first", "this host was never bootstrapped")


def _judged(stage: str, receipt: StageReceipt, wanted: Mapping[str, str]) -> Visit | None:
    changed = receipt.changed_inputs(wanted)
    if changed:
        variables = tuple(name for name in changed if name not in CODE)
        kind = "inputs" if variables else "code"
        return Visit(stage, kind, f"{', '.join(variables)} changed" if variables else "its code changed", variables)
    return None if receipt.stands else Visit(stage, "drift", _drift(receipt))


def _drift(receipt: StageReceipt) -> str:
    """Why a receipt does not hold, in one clause."""
    if receipt.error:
        return receipt.error.splitlines()[0]
    names = list(dict.fromkeys(finding.resource or finding.module for finding in receipt.findings)) or receipt.facts
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more} drifted"


def _follow(visits: dict[str, Visit], host: HostReceipts, stages: Sequence[str]) -> None:
    """Add what stands on a stage that will be changed; and the checks that come before anything but a mere repair."""
    for stage in stages:
        if stage in visits and _is_deep(visits[stage], host):
            for follower in FOLLOWERS.get(stage, ()):
                if follower in stages:
                    visits.setdefault(follower, Visit(follower, "follows", f"it stands on {stage}"))
    if "preflight" in stages and any(visit.kind not in ("drift", "follows") for visit in visits.values()):
        visits.setdefault("preflight", Visit("preflight", "follows", "it comes before changes"))


def _is_deep(visit: Visit, host: HostReceipts) -> bool:
    """Whether a visit may do more than set right, at no one's cost, what somebody else changed."""
    if visit.kind != "drift":
        return True
    receipt = host.stages[visit.stage]
    return bool(receipt.facts or receipt.error) or any(item.effect not in HARMLESS for item in receipt.findings)


def _together(fleet: Fleet, visits: dict[str, dict[str, Visit]], stages: Sequence[str]) -> None:
    """The hosts of a replica go through the stages that join them together, or not at all."""
    for replica in fleet.replicas:
        members = [host.name for host in replica.hosts if host.name in visits]
        if len(members) < len(replica.hosts):
            for name, stage in itertools.product(members, WHOLE_STAGES):
                visits[name].pop(stage, None)
        for stage in (stage for stage in REPLICA_STAGES if stage in stages):
            because = next((name for name in members if stage in visits[name]), None)
            for name in members if because else ():
                visits[name].setdefault(stage, Visit(stage, "follows", f"{because} of the same replica needs it"))


def _waves(
    fleet: Fleet, told: Mapping[str, HostReceipts], visits: Mapping[str, Sequence[Visit]]
) -> Iterator[tuple[str, ...]]:
    """First all that disturbs no one, together; then, one by one, the replicas that serve and will be disturbed."""
    waves = []
    for replica in disturbed(fleet, told, visits):
        waves.append(tuple(host.name for host in replica.hosts if host.name in visits))
    alone = {name for wave in waves for name in wave}
    rest = tuple(name for name in visits if name not in alone)
    if rest:
        yield rest
    yield from waves


def disturbed(
    fleet: Fleet, told: Mapping[str, HostReceipts], visits: Mapping[str, Sequence[Visit]]
) -> Iterator[Replica]:
    """The replicas that serve and that a visit may keep from it for a while."""
    return (replica for replica in touched(fleet, told, visits) if serves(replica, told))


def touched(fleet: Fleet, told: Mapping[str, HostReceipts], visits: Mapping[str, Sequence[Visit]]) -> Iterator[Replica]:
    """The replicas that a visit may keep from serving for a while, whether they serve now or not."""
    for replica in fleet.replicas:
        members = [host.name for host in replica.hosts if host.name in told]
        if any(_disturbs(visit, told[name]) for name in members for visit in visits.get(name, ())):
            yield replica


def serves(replica: Replica, told: Mapping[str, HostReceipts]) -> bool:
    """Whether a part of a replica's engine ran on any of its hosts when they were asked."""
    return any(told[host.name].serving for host in replica.hosts if host.name in told)


def _disturbs(visit: Visit, host: HostReceipts) -> bool:
    return visit.stage in DISRUPTIVE and _is_deep(visit, host)
