"""One host, as its rules see it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from provision.inventory.model import Fleet, Host, Replica
from provision.preflight.facts import Facts
from provision.preflight.request import profile_of

GIB, TIB = 2**30, 2**40
TIMES = "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Seen:
    """A host that told its facts, with what the inventory wants of it. `ahead` is its clock by the controller's."""

    fleet: Fleet
    replica: Replica
    host: Host
    facts: Facts
    ahead: tuple[float, float]

    @property
    def profile(self) -> Mapping[str, Any]:
        """What its hardware should be; empty where the inventory names none."""
        return profile_of(self.host)

    @property
    def has_peers(self) -> bool:
        """Whether its replica spans hosts."""
        return len(self.replica.hosts) > 1

    @property
    def uses_ray(self) -> bool:
        """Whether it runs Ray."""
        return self.replica.joined_by_ray

    @property
    def is_simulated(self) -> bool:
        """Whether it shares clock and kernel with the machine that simulates it."""
        return bool(self.host.setting("lab"))

    @property
    def bootstrap(self) -> str:
        """The command that brings this host about."""
        return shlex.join(["provision", "bootstrap", str(self.fleet.path), "--limit", self.host.name])


def size_text(size: float) -> str:
    """Bytes as a person reads them."""
    if size >= TIB:
        return f"{size / TIB:.1f} TiB"
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


def several(names: list[str], most: int = 4) -> str:
    """A few names, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
