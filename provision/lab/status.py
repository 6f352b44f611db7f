"""What the hosts of a simulated fleet are doing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from provision.lab import cgroup, disk
from provision.lab.fleet import LabFleet
from provision.lab.host import LabHost


@dataclass(frozen=True)
class HostStatus:
    """One host.

    `state` is `off`, `held` (in a reboot that does not end), `booting`, `unsupervised` (it would not come back from a
    reboot; `up` repairs that), `hangs`, or systemd's own word.
    `leader` is the host's PID 1 on this machine; `memory` and `disk` are bytes that it takes.
    """

    name: str
    state: str
    address: str
    profile: str
    leader: int | None
    memory: int
    disk: int


def read(fleet: LabFleet) -> list[HostStatus]:
    """The state of every host of the fleet."""
    return [
        HostStatus(
            name=host.name,
            state=_state(host),
            address=host.address,
            profile=host.profile,
            leader=host.running_leader(),
            memory=cgroup.memory_used(host.group) or 0,
            disk=disk.used(host.directory / "disk.img"),
        )
        for host in fleet.hosts.values()
    ]


def as_json(fleet: LabFleet) -> dict[str, object]:
    """The fleet and its hosts, for `--json`."""
    paths: dict[str, Path] = {"inventory": fleet.inventory, "directory": fleet.directory, "overlay": fleet.overlay}
    return {
        "id": fleet.id,
        **{name: str(path) for name, path in paths.items()},
        "gateway": fleet.gateway,
        "hosts": [vars(host) for host in read(fleet)],
    }


def _state(host: LabHost) -> str:
    running = host.running_leader() is not None
    if not host.on:
        return "unsupervised" if running else "off"
    if not running:
        return "held" if host.hold_file.exists() else "booting"
    answer = host.run(["timeout", "3", "systemctl", "is-system-running"], check=False).stdout.strip()
    return {"starting": "booting", "initializing": "booting", "": "hangs"}.get(answer, answer)
