"""From what the hosts told to findings: which rules there are, and what each of them must have seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from provision.inventory.model import Fleet
from provision.preflight.findings import WORST_FIRST, Finding, blocker, warning
from provision.preflight.rules import between, gpus, machine, network, site
from provision.preflight.rules.seen import Seen
from provision.preflight.survey import Sight

Rule = Callable[[Seen], Iterable[Finding]]
# A rule, and the sections of the facts without which it cannot say anything.
OF_A_HOST: tuple[tuple[Rule, tuple[str, ...]], ...] = (
    (machine.fit, ("base",)),
    (machine.clock, ()),
    (machine.time_sync, ("machine",)),
    (machine.reboot, ("machine",)),
    (machine.headers, ("machine", "base")),
    (machine.disks, ("disks",)),
    (machine.swap, ("disks",)),
    (machine.busy, ("busy",)),
    (gpus.driver, ("nvidia", "packages", "base")),
    (gpus.fabric, ("nvidia", "packages")),
    (gpus.gpus, ("nvidia", "packages")),
    (gpus.nvlink, ("nvidia", "packages")),
    (gpus.topology, ("nvidia", "base")),
    (gpus.processes, ("nvidia",)),
    (network.addresses, ("net",)),
    (network.names, ("net", "reach")),
    (network.ports, ("rdma",)),
    (network.gpudirect, ("rdma", "nvidia")),
    (network.pcie, ("pci",)),
    (site.apt, ("packages",)),
    (site.upgrades, ("packages",)),
    (site.reach, ("reach", "weights")),
    (site.listeners, ("ports",)),
    (site.weights, ("weights", "disks", "reach")),
)
BetweenRule = Callable[[Sequence[Seen]], Iterable[Finding]]
OF_A_REPLICA: tuple[tuple[BetweenRule, tuple[str, ...]], ...] = (
    (between.mtu, ("net",)),
    (between.rdma_mtu, ("rdma",)),
    (between.rdma_alike, ("rdma",)),
    (between.drivers, ("nvidia",)),
    (between.firmware, ("rdma",)),
    (between.kernels, ("base",)),
)
OF_THE_FLEET: tuple[tuple[BetweenRule, tuple[str, ...]], ...] = (
    (between.twins, ("machine",)),
    (between.clocks, ()),
)


def judge(fleet: Fleet, sights: Sequence[Sight]) -> list[Finding]:
    """All findings, the worst first, those of a severity in the order of the hosts and rules."""
    told = [seen for sight in sights if (seen := _seen(fleet, sight))]
    found = [*_gone(sights), *(finding for seen in told for finding in _of_host(seen))]
    for replica in fleet.replicas:
        found += _of_several([seen for seen in told if seen.replica.name == replica.name], OF_A_REPLICA)
    found += _of_several(told, OF_THE_FLEET)
    return sorted(found, key=lambda finding: WORST_FIRST.index(finding.severity))


def _seen(fleet: Fleet, sight: Sight) -> Seen | None:
    return Seen(fleet, sight.replica, sight.host, sight.facts, sight.ahead) if sight.facts else None


def _gone(sights: Iterable[Sight]) -> Iterator[Finding]:
    for sight in sights:
        if sight.trouble:
            check = "unreachable" if sight.trouble.unreachable else "login"
            yield _at(blocker(check, sight.trouble.message, sight.trouble.hint), sight.host.name)


def _of_host(seen: Seen) -> Iterator[Finding]:
    for section, why in seen.facts.errors.items():
        todo = "The rules that need it were left out. Try again; if it stays so, look on the host."
        yield _at(warning("look", f"its {section} could not be looked at: {why}.", todo), seen.host.name)
    for rule, sections in OF_A_HOST:
        if not seen.facts.errors.keys() & set(sections):
            yield from (_at(finding, seen.host.name) for finding in rule(seen))


def _of_several(told: Sequence[Seen], rules: Iterable[tuple[BetweenRule, tuple[str, ...]]]) -> Iterator[Finding]:
    for rule, sections in rules:
        able = [seen for seen in told if not seen.facts.errors.keys() & set(sections)]
        if len(able) > 1:
            yield from rule(able)


def _at(finding: Finding, host: str) -> Finding:
    return replace(finding, hosts=(host,))
