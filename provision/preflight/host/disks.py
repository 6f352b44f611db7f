"""What lies below the paths that a bootstrap writes to: file system, size, and how fast a kind of disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.provision_host import read_text
from ansible.module_utils.provision_look import nearest_directory

NETWORK = ("nfs", "nfs4", "cifs", "lustre", "ceph", "glusterfs", "fuse.glusterfs", "9p", "virtiofs", "beegfs")
MEMORY = ("tmpfs", "ramfs")
SLOWEST_FIRST = ("rotational", "network", "unknown", "virtual", "ssd", "nvme", "memory")


def look(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Each path by what it is for."""
    mounts = mounted(read_text("/proc/self/mountinfo") or "")
    return {use: _path(path, mounts) for use, path in asked["paths"].items()}


def _path(path: str, mounts: list[dict[str, str]]) -> dict[str, Any]:
    place = nearest_directory(path)
    seen = os.statvfs(place)
    real = os.path.realpath(place)
    at = max((mount for mount in mounts if is_below(real, mount["at"])), key=lambda mount: len(mount["at"]))
    names = sorted(set(disks_of(at)))
    return {
        "path": path,
        "mount": at["at"],
        "file_system": at["type"],
        "size": seen.f_blocks * seen.f_frsize,
        "free": seen.f_bavail * seen.f_frsize,
        "taken": os.path.getsize(path) if os.path.isfile(path) else 0,
        "disks": names,
        "kind": kind_of(at["type"], names),
    }


def mounted(text: str) -> list[dict[str, str]]:
    """The mounts of a `mountinfo`, the later ones over the earlier."""
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        first, _, last = line.partition(" - ")
        words, (kind, source) = first.split(), last.split()[:2]
        at = words[4].replace("\\040", " ")
        found[at] = {"at": at, "number": words[2], "type": kind, "source": source}
    return list(found.values())


def is_below(path: str, mount: str) -> bool:
    """Whether a path lies in what is mounted there."""
    return path == mount or path.startswith(mount.rstrip("/") + "/")


def disks_of(mount: Mapping[str, str]) -> Iterator[str]:
    """The disks that hold a file system, through partitions, RAID, LVM and encryption."""
    number = mount["number"]
    if number.startswith("0:") and mount["source"].startswith("/dev/"):  # btrfs has a number of its own
        try:
            device = os.stat(mount["source"]).st_rdev
        except OSError:
            return
        number = f"{os.major(device)}:{os.minor(device)}"
    link = Path("/sys/dev/block", number)
    if link.exists():
        yield from _whole(link.resolve())


def _whole(device: Path) -> Iterator[str]:
    below = list((device / "slaves").iterdir()) if (device / "slaves").is_dir() else []
    for slave in below:
        yield from _whole(slave.resolve())
    if not below:
        yield device.parent.name if (device / "partition").exists() else device.name


def kind_of(file_system: str, names: list[str]) -> str:
    """How fast it is as a kind: that of the slowest disk below it."""
    if file_system in NETWORK:
        return "network"
    if file_system in MEMORY:
        return "memory"
    kinds = {_kind(name, read_text(f"/sys/block/{name}/queue/rotational") or "") for name in names} or {"unknown"}
    return min(kinds, key=SLOWEST_FIRST.index)


def _kind(name: str, rotational: str) -> str:
    if name.startswith("nvme"):
        return "nvme"
    if name.startswith(("vd", "xvd")):
        return "virtual"  # what the hypervisor says of it means nothing
    if name.startswith(("loop", "ram", "zram")):
        return "unknown"
    return {"1": "rotational", "0": "ssd"}.get(rotational.strip(), "unknown")
