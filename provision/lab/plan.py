"""Which hosts a fleet shall have, and of what size: from an inventory, or simply a number of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from provision.errors import InventoryError, Problem
from provision.inventory import Fleet, Host, load_fleet
from provision.lab.network import MOST_HOSTS

DEFAULT_PROFILE = "8xh20-96"
DEFAULT_DISK = 40 << 30
_UNITS = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
# What the lab's model and a host without GPUs can do of what a real inventory asks of vLLM.
_TINY = {"max-model-len": 512, "max-num-seqs": 8}
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True)
class HostPlan:
    """One host to make; `profile` names its hardware, sizes are bytes, `memory` None means no limit.

    `rehearsed` are the variables of a real inventory that its simulation replaces.
    """

    name: str
    profile: str
    disk_size: int = DEFAULT_DISK
    memory: int | None = None
    rehearsed: Mapping[str, object] = field(default_factory=dict)


def read(inventory: Path, count: int | None) -> list[HostPlan]:
    """The hosts of the inventory, or `count` alike ones without one."""
    if count is not None:
        hosts = [HostPlan(f"node-{number}", DEFAULT_PROFILE) for number in range(1, count + 1)]
    else:
        hosts = _of_inventory(inventory)
    if not 1 <= len(hosts) <= MOST_HOSTS:
        problem = f"{len(hosts)} hosts: a simulated fleet has between 1 and {MOST_HOSTS}."
        raise InventoryError([Problem(problem, inventory)])
    return hosts


def _of_inventory(inventory: Path) -> list[HostPlan]:
    problems: list[Problem] = []
    fleet = load_fleet(inventory)
    plans = [_host(fleet, host, problems) for host in fleet.hosts.values()]
    if problems:
        raise InventoryError(problems)
    return plans


def _host(fleet: Fleet, host: Host, problems: list[Problem]) -> HostPlan:
    inventory = fleet.path
    if not _NAME.fullmatch(host.name):
        message = f"{host.name!r} cannot be the name of a simulated host: letters, digits, '-' and '.', at most 64."
        problems.append(Problem(message, inventory))
    profile = host.variables.get("hardware_profile")
    if profile is None and host in fleet.gateways and fleet.replica_of(host.name) is None:
        profile = DEFAULT_PROFILE  # cards that nobody looks at
    if profile is None:
        message = f"{host.name} has no hardware_profile, so the lab cannot tell what to simulate."
        problems.append(Problem(message, inventory))
    return HostPlan(
        name=host.name,
        profile=str(profile),
        disk_size=_size(inventory, host, "lab_disk", problems) or DEFAULT_DISK,
        memory=_size(inventory, host, "lab_memory", problems),
        rehearsed={} if fleet.lab else _rehearsed(fleet, host),
    )


def _rehearsed(fleet: Fleet, host: Host) -> dict[str, object]:
    """A real inventory made small: one rank on each host, the lab's tiny model, swap that a small disk holds."""
    replica = fleet.replica_of(host.name)
    if replica is None:
        return {}
    asked = host.variables.get("vllm_args")
    arguments = {**(asked if isinstance(asked, dict) else {}), **_TINY}
    return {
        "vllm_tensor_parallel_size": len(replica.hosts),
        "vllm_pipeline_parallel_size": 1,
        "vllm_data_parallel_size": 1,
        "ray_num_gpus": 1,
        "vllm_args": arguments,
        **({"swap_size": "64M"} if host.variables.get("swap_size") else {}),
        "swap_mode": "file",  # simulated hosts have no partitions, and their root is an overlay
        "swap_path": "/data/swapfile",
        "host_ntp_servers": [],
    }


def _size(inventory: Path, host: Host, name: str, problems: list[Problem]) -> int | None:
    """A size such as `40G`, in bytes."""
    value = host.variables.get(name)
    if value is None:
        return None
    match = re.fullmatch(r"([1-9][0-9]*)([MGT])", str(value))
    if not match:
        message = f"{host.name}: {name} is {value!r}; expected a whole number and M, G or T, such as 40G."
        problems.append(Problem(message, inventory))
        return None
    return int(match[1]) * _UNITS[match[2]]
