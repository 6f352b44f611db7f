"""What an inventory says, typed. Nothing here knows of Ansible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from provision.stack import Stack

GATEWAY = "gateway"  # the group whose hosts are gateways


@dataclass(frozen=True)
class Host:
    """One server: how to reach it, and every variable that the inventory gives it (resolved).

    `defaults` are the roles' defaults as they come out on this host, of the settings that the controller itself uses.
    """

    name: str
    address: str
    user: str | None
    port: int | None
    key_file: Path | None
    ssh_args: tuple[str, ...]
    variables: Mapping[str, object] = field(repr=False)
    groups: tuple[str, ...]
    defaults: Mapping[str, object] = field(repr=False, default_factory=dict)

    def setting(self, name: str) -> object:
        """The value of a variable on this host: the inventory's, or the role's default."""
        value = self.variables.get(name)
        return self.defaults.get(name) if value is None else value

    @property
    def ray_address(self) -> str:
        """The address at which the other hosts of its replica find it."""
        return str(self.variables.get("ray_address") or self.address)


@dataclass(frozen=True)
class Replica:
    """Hosts that serve one copy of the model together; the first in the order of the inventory is the head."""

    name: str
    hosts: tuple[Host, ...]

    @property
    def head(self) -> Host:
        """The host on which vLLM's API runs."""
        return self.hosts[0]

    @property
    def is_one_copy(self) -> bool:
        """Whether all its hosts serve one copy of the model together, and not several behind one API."""
        return str(self.head.variables.get("vllm_data_parallel_size") or 1) == "1"

    @property
    def joined_by_ray(self) -> bool:
        """Whether its hosts run Ray; else vLLM itself starts the workers. As the roles' defaults say."""
        asked = self.head.variables.get("vllm_executor")
        return str(asked) == "ray" if asked else len(self.hosts) > 1 and self.is_one_copy


@dataclass(frozen=True)
class Fleet:
    """A whole inventory, valid.

    `sources` are the absolute paths that Ansible is given, in that order: the user's inventory, then overlays.
    """

    path: Path
    sources: tuple[Path, ...]
    hosts: Mapping[str, Host]
    groups: Mapping[str, tuple[str, ...]]
    replicas: tuple[Replica, ...]
    stack: Stack
    lab: bool

    @property
    def overlaid(self) -> bool:
        """Whether simulated hosts stand for those that it names: an overlay says how to reach them."""
        return len(self.sources) > 1

    @property
    def serving(self) -> tuple[Host, ...]:
        """The hosts of every replica, in the order of the inventory."""
        return tuple(host for replica in self.replicas for host in replica.hosts)

    @property
    def gateways(self) -> tuple[Host, ...]:
        """The hosts that clients ask, and that pass requests on to the replicas; in the order of the inventory."""
        return tuple(self.hosts[name] for name in self.groups.get(GATEWAY, ()))

    @property
    def managed(self) -> tuple[Host, ...]:
        """The hosts that a run is about: those that serve, then gateways that do not."""
        return (*self.serving, *(host for host in self.gateways if self.replica_of(host.name) is None))

    def replica_of(self, host: str) -> Replica | None:
        """The replica that a host belongs to, if it serves."""
        return next(
            (replica for replica in self.replicas if any(member.name == host for member in replica.hosts)), None
        )
