"""What a host is, read without any driver or tool: its system, disks, memory, PCI bus, Secure Boot.

Used by the stage preflight and by `provision preflight`, which must see the same. Standard library only, Python 3.9 and
later.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Iterable

from ansible.module_utils import provision_pci as pci
from ansible.module_utils.provision_files import read_text

GIB = 2**30
ENVIRONMENTS = "/opt/provision/env"


def os_release() -> dict[str, str]:
    """The fields of /etc/os-release."""
    lines = (line.split("=", 1) for line in (read_text("/etc/os-release") or "").splitlines() if "=" in line)
    return {key: value.strip("\"'") for key, value in lines}


def system() -> dict[str, str]:
    """Operating system, processor, kernel and Python."""
    release = os_release()
    return {
        "id": release.get("ID", "unknown"),
        "version": release.get("VERSION_ID", "unknown"),
        "name": release.get("PRETTY_NAME", release.get("ID", "unknown")),
        "machine": os.uname().machine,
        "kernel": os.uname().release,
        "python": platform.python_version(),
    }


def pci_devices() -> list[dict[str, str]]:
    """NVIDIA's devices on the bus: address, class and device id such as 0x030200 and 0x2329, NUMA node."""
    return [
        {
            "address": address,
            "kind": pci.word(address, "class"),
            "device": pci.word(address, "device"),
            "numa": pci.word(address, "numa_node") or "-1",
        }
        for address in pci.devices(pci.NVIDIA)
    ]


def nearest_directory(path: str) -> Path:
    """The directory at a path, or the closest one above it that is there already."""
    place = Path(path)
    while not place.is_dir():
        place = place.parent
    return place


def free_bytes(path: str) -> int:
    """How much ordinary users may still write at a path, which need not be there yet."""
    seen = os.statvfs(nearest_directory(path))
    return seen.f_bavail * seen.f_frsize


def memory_bytes() -> int:
    """The memory that the kernel has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def is_secure_boot() -> bool:
    """Whether the firmware lets only signed modules in; False where it cannot be read."""
    for variable in Path("/sys/firmware/efi/efivars").glob("SecureBoot-*"):
        return variable.read_bytes()[-1:] == b"\x01"
    return False


def base(paths: Iterable[str]) -> dict[str, Any]:
    """All of it, with the room that is free at these paths."""
    return {
        "system": system(),
        "free": {path: free_bytes(path) for path in paths},
        "memory": memory_bytes(),
        "nvidia": pci_devices(),
        "secure_boot": is_secure_boot(),
        "nouveau": Path("/sys/module/nouveau").is_dir(),
        "driver_loaded": Path("/proc/driver/nvidia/version").exists(),
        "bootstrapped": any(Path(ENVIRONMENTS).glob("*")),
    }
