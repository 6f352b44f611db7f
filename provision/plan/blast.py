"""The blast radius: which replicas leave rotation in which wave, and what serves on meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from provision.converge.standing import Standing, serves, touched
from provision.drift import HostReceipts, verify
from provision.inventory import Fleet, Host, Replica
from provision.plan.model import DISRUPTIVE, Capacity, PlannedChange, Wave

Changes = Mapping[str, tuple[PlannedChange, ...]]
Estimate = Callable[[Mapping[str, bool]], float | None]

CHEAPEST = ("preflight",)  # to learn whether a host serves, some stage must be asked for


class Rotation:
    """Which replicas serve now, as their hosts told. `unknown` are those of which no host told."""

    def __init__(self, fleet: Fleet, receipts: Mapping[str, HostReceipts]) -> None:
        self._fleet = fleet
        self._told = {name: host for name, host in receipts.items() if not host.trouble}
        known = [replica for replica in fleet.replicas if any(host.name in self._told for host in replica.hosts)]
        self.unknown = tuple(replica.name for replica in fleet.replicas if replica not in known)
        self.serving = tuple(replica.name for replica in known if serves(replica, self._told))

    def capacity(self, without: Collection[str] = ()) -> Capacity:
        """What serves while some replicas do not."""
        left = [replica for replica in self._fleet.replicas if replica.name in {*self.serving} - {*without}]
        tokens = [self._tokens(replica) for replica in left]
        known = [count for count in tokens if count is not None]
        return Capacity(tuple(replica.name for replica in left), sum(known) if len(known) == len(tokens) else None)

    def waves(self, standing: Standing, changes: Changes, estimate: Estimate) -> tuple[Wave, ...]:
        """Each wave with the replicas that it takes out."""
        found, leaving = [], self._leaving(standing, changes)
        for hosts in standing.waves:
            out = tuple(replica.name for replica in leaving if any(host.name in hosts for host in replica.hosts))
            found.append(Wave(hosts, out, self.capacity(out), estimate(_work(hosts, standing, changes))))
        return tuple(found)

    def _tokens(self, replica: Replica) -> int | None:
        head = self._told.get(replica.head.name)
        return head.kv_tokens if head else None

    def _leaving(self, standing: Standing, changes: Changes) -> list[Replica]:
        """Whom the run will drain, whatever its visits come to. Without a gateway changes alone take a replica out."""
        if self._fleet.gateways:
            found = list(touched(self._fleet, standing.receipts, standing.visits))
        else:
            found = [replica for replica in self._fleet.replicas if _is_interrupted(replica, changes)]
        return [replica for replica in found if replica.name in self.serving]


def _is_interrupted(replica: Replica, changes: Changes) -> bool:
    return any(change.effect in DISRUPTIVE for host in replica.hosts for change in changes.get(host.name, ()))


def others(fleet: Fleet, hosts: Sequence[Host]) -> dict[str, HostReceipts]:
    """What the heads outside the limit tell of themselves: the capacity left is theirs, as is a worker's replica."""
    asked = {host.name for host in hosts}
    heads = [replica.head for replica in fleet.replicas if replica.head.name not in asked]
    return {told.host: told for told in verify(heads, CHEAPEST, who=False)} if heads else {}


def _work(hosts: Iterable[str], standing: Standing, changes: Changes) -> dict[str, bool]:
    """The stages of a wave, each with whether it changes anything."""
    hosts = list(hosts)
    visited = [visit.stage for host in hosts for visit in standing.visits.get(host, ())]
    changed = {change.stage for host in hosts for change in changes.get(host, ())}
    return {stage: stage in changed for stage in dict.fromkeys(visited)}
