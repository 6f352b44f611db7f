"""Rules of several hosts: what must be alike in a replica, and in the fleet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from itertools import combinations

from provision.content import of_roles
from provision.preflight.findings import Finding, Severity
from provision.preflight.rules.network import peer_interface
from provision.preflight.rules.seen import TIMES, Seen, several

APART_S = 2.0  # seconds between the clocks of two hosts, from which logs and tokens no longer fit together


def twins(fleet: Sequence[Seen]) -> Iterator[Finding]:
    """Two names for one machine, by its boot."""
    for one, other in combinations(fleet, 2):
        boot = one.facts.machine.boot_id
        if boot and boot == other.facts.machine.boot_id:
            names = one.host.name, other.host.name
            message = f"{' and '.join(names)} are one machine ({one.host.address}, {other.host.address})."
            yield Finding("twins", Severity.BLOCKER, message, "Correct ansible_host of one of them.", names)


def clocks(fleet: Sequence[Seen]) -> Iterator[Finding]:
    """How far the clocks of hosts are apart, as far as that is certain. Each is compared with the middle one."""
    ordered = sorted(fleet, key=lambda seen: sum(seen.ahead))
    if len(ordered) < 2:  # noqa: PLR2004 - two clocks to compare
        return
    middle = ordered[(len(ordered) - 1) // 2]
    for seen in fleet:
        for one in of_roles("provision_fitness").of_clock(
            surely_ahead(seen, middle), APART_S, f"that of {middle.host.name}"
        ):
            names = seen.host.name, middle.host.name
            yield Finding(
                "clock", Severity.WARNING, f"{seen.host.name}: {one.what[0].lower()}{one.what[1:]}", one.remedy, names
            )


def surely_ahead(one: Seen, other: Seen) -> float:
    """By how much one clock is surely ahead of another (negative: behind); 0 where they may agree."""
    least, most = one.ahead[0] - other.ahead[1], one.ahead[1] - other.ahead[0]
    return least if least > 0 else most if most < 0 else 0.0


def mtu(replica: Sequence[Seen]) -> Iterator[Finding]:
    """The MTU of the interfaces between peers."""
    found = {seen.host.name: peer_interface(seen) for seen in replica}
    said = {host: f"{each.mtu} ({each.name})" for host, each in found.items() if each}
    if len({each.mtu for each in found.values() if each}) > 1:
        yield _unlike(
            "mtu",
            f"the peers of a replica have different MTUs: {_listed(said)}. Large packets are lost between them, and "
            "connections hang after they were made.",
            "Set one MTU on all of them, and on the switches between.",
            replica,
        )


def rdma_mtu(replica: Sequence[Seen]) -> Iterator[Finding]:
    """The MTU of RDMA ports that are up, where the hosts can tell it."""
    found = {
        seen.host.name: {port.mtu for port in seen.facts.rdma.ports if port.is_up and port.mtu} for seen in replica
    }
    if len(set().union(*found.values())) > 1:
        said = {host: " and ".join(map(str, sorted(mtus))) or "unknown" for host, mtus in found.items()}
        message = f"RDMA ports of a replica have different MTUs: {_listed(said)}."
        todo = "Set one on all (for RoCE the interface's, 4200 or more for an RDMA MTU of 4096), and on the switches."
        yield _unlike("mtu", message, todo, replica)


def rdma_alike(replica: Sequence[Seen]) -> Iterator[Finding]:
    """The RDMA ports that are up: as many, of the same kind and rate."""
    found = {seen.host.name: _rails(seen) for seen in replica}
    if len(set(found.values())) > 1:
        message = f"the hosts of a replica have different RDMA ports up: {_listed(found)}."
        todo = "NCCL pairs ports by rank: bring up the missing ones, or exclude their partners."
        yield _unlike("rdma", message, todo, replica)


def _rails(seen: Seen) -> str:
    rails = Counter(f"{port.link_layer} {port.rate:.0f} Gb/s" for port in seen.facts.rdma.ports if port.is_up)
    return ", ".join(f"{count} {TIMES} {rail}" for rail, count in sorted(rails.items())) or "none"


def drivers(replica: Sequence[Seen]) -> Iterator[Finding]:
    """The loaded driver."""
    yield from _skew(
        replica, "driver", "load different drivers", lambda seen: seen.facts.nvidia.loaded, Severity.WARNING
    )


def firmware(replica: Sequence[Seen]) -> Iterator[Finding]:
    """The firmware of adapters of one kind."""
    models = {port.adapter for seen in replica for port in seen.facts.rdma.ports}
    for model in sorted(models):
        yield from _skew(
            replica,
            "rdma",
            f"have {model} with different firmware",
            lambda seen, model=model: ", ".join(  # type: ignore[misc]
                sorted({port.firmware for port in seen.facts.rdma.ports if port.adapter == model})
            ),
            Severity.NOTE,
        )


def kernels(replica: Sequence[Seen]) -> Iterator[Finding]:
    """The running kernel."""
    yield from _skew(
        replica, "system", "run different kernels", lambda seen: seen.facts.base.system.get("kernel", ""), Severity.NOTE
    )


def _skew(
    replica: Sequence[Seen], check: str, what: str, of: Callable[[Seen], str], severity: Severity
) -> Iterator[Finding]:
    found = {seen.host.name: of(seen) or "none" for seen in replica}
    if len(set(found.values())) > 1:
        todo = (
            "A bootstrap brings them to one version." if check == "driver" else "Worth one version at the next chance."
        )
        names = tuple(found)
        yield Finding(check, severity, f"the hosts of a replica {what}: {_listed(found)}.", todo, names)


def _unlike(check: str, message: str, todo: str, replica: Sequence[Seen]) -> Finding:
    return Finding(check, Severity.WARNING, message, todo, tuple(seen.host.name for seen in replica))


def _listed(said: dict[str, str]) -> str:
    groups: dict[Hashable, list[str]] = {}
    for host, text in said.items():
        groups.setdefault(text, []).append(host)
    return "; ".join(f"{several(hosts)} {text}" for text, hosts in groups.items())
