"""Where a device sits on the PCI bus, how far two are from each other, and a few of their registers.

Everything is read from sysfs, as any process can that asks the kernel; registers as root. Standard library only.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Iterator, NamedTuple

from ansible.module_utils.provision_files import read_text

SYS = Path("/sys")
# How nvidia-smi topo calls a distance, nearest first.
PIX, PXB, PHB, NODE, FAR = "PIX", "PXB", "PHB", "NODE", "SYS"
DISTANCES = (PIX, PXB, PHB, NODE, FAR)
NVIDIA, MELLANOX = "0x10de", "0x15b3"
ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_STATUS, _CAPABILITIES, _HAS_CAPABILITIES = 0x06, 0x34, 0x10
_EXPRESS, _DEVICE_CONTROL = 0x10, 8  # the PCI Express capability; its device control register
_EXTENDED, _ACS, _ACS_CONTROL = 0x100, 0x0D, 6
_RELAXED_ORDERING, _READ_SHIFT, _READ_MASK = 0x0010, 12, 0x7000
_REDIRECTS = 0x04 | 0x08  # requests, and completions, between devices go up to the root complex
_KIND, _DOWNSTREAM = 2, 6  # the register with the kind of an Express port; a port of a switch that leads to devices
BRIDGE, NO_IOMMU = "0x0604", "off"


def device(address: str) -> Path:
    """The directory of a device in sysfs."""
    return SYS / "bus/pci/devices" / address


def word(address: str, name: str) -> str:
    """One attribute of a device, empty where it has none."""
    return (read_text(str(device(address) / name)) or "").strip()


def addresses() -> list[str]:
    """Every device of the bus, in the order of the bus."""
    root = SYS / "bus/pci/devices"
    return sorted(os.listdir(root)) if root.is_dir() else []


@lru_cache(maxsize=None)
def _identity(folder: str) -> tuple[str, str]:
    """Vendor and class of a device; a host has hundreds, and neither changes while this process lives."""
    vendor, kind = ((read_text(f"{folder}/{name}") or "").strip() for name in ("vendor", "class"))
    return vendor, kind[:6]


def devices(vendor: str, *kinds: str) -> list[str]:
    """A vendor's devices (all for ""), of these classes where any are named (`0x0302`), in the order of the bus."""
    found = ((address, *_identity(str(device(address)))) for address in addresses())
    return [each for each, maker, kind in found if vendor in ("", maker) and (not kinds or kind in kinds)]


def gpus() -> list[str]:
    """NVIDIA's GPUs, in the order in which nvidia-smi counts them."""
    return devices(NVIDIA, "0x0300", "0x0302")


def nvswitches() -> int:
    """How many of NVIDIA's switches are on the bus: bridges, by their class."""
    return len(devices(NVIDIA, "0x0680"))


def has_rdma_adapter() -> bool:
    """Whether an adapter is on the bus that the kernel's mlx5 driver makes RDMA ports of."""
    return bool(devices(MELLANOX, "0x0200", "0x0207"))


class Place(NamedTuple):
    """Where a device sits: what leads to it, from the host bridge (`pci0000:15`) down to itself, and its NUMA node."""

    path: tuple[str, ...]
    numa: str


def place(address: str) -> Place:
    """Look up where a device sits."""
    try:
        parts = os.readlink(device(address)).split("/")
    except OSError:  # it is gone
        parts = [address]
    root = next((n for n, part in enumerate(parts) if re.fullmatch(r"pci[0-9a-f]{4,}:[0-9a-f]{2}", part)), -1)
    return Place(tuple(parts[root:]), word(address, "numa_node"))


def distance(one: Place, other: Place) -> str:
    """How far two devices are from each other, in nvidia-smi's words."""
    together = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one.path, other.path)))  # noqa: B905
    if together > 1:
        return PIX if max(len(one.path), len(other.path)) - together <= 2 else PXB
    if together:
        return PHB
    return NODE if one.numa == other.numa else FAR


def bridges(where: Place) -> list[str]:
    """The bridges above a device, from the root down."""
    return [part for part in where.path[:-1] if ADDRESS.fullmatch(part)]


def _config(address: str) -> bytes:
    try:
        return (device(address) / "config").read_bytes()
    except OSError:
        return b""


def _number(data: bytes, offset: int, size: int = 2) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def _capabilities(data: bytes) -> Iterator[tuple[int, int]]:
    """Id and place of each capability."""
    place = data[_CAPABILITIES] & 0xFC if len(data) >= 64 and data[_STATUS] & _HAS_CAPABILITIES else 0
    for _ in range(48):  # a broken list may run in circles
        if not place or place + 2 > len(data):
            return
        yield data[place], place
        place = data[place + 1] & 0xFC


def _device_control(address: str) -> tuple[int, int] | None:
    """Place and value of the device control register; None for a device that has none, or that we may not read."""
    data = _config(address)
    for kind, place in _capabilities(data):
        if kind == _EXPRESS and place + _DEVICE_CONTROL + 2 <= len(data):
            return place + _DEVICE_CONTROL, _number(data, place + _DEVICE_CONTROL)
    return None


def max_read_request(address: str) -> int:
    """The most bytes that a device asks for in one read; 0 where that cannot be read."""
    found = _device_control(address)
    return 128 << ((found[1] & _READ_MASK) >> _READ_SHIFT) if found else 0


def set_max_read_request(address: str, size: int) -> None:
    """Set it; kept until the next reset of the device."""
    found = _device_control(address)
    if found:
        place, value = found
        value = (value & ~_READ_MASK) | (read_request_bits(size) << _READ_SHIFT)
        with open(device(address) / "config", "r+b", buffering=0) as config:
            config.seek(place)
            config.write(value.to_bytes(2, "little"))


def read_request_bits(size: int) -> int:
    """A size (128, 256, … 4096) as the register has it."""
    return (size // 128).bit_length() - 1


def relaxed_ordering(address: str) -> bool | None:
    """Whether a device may let its writes overtake each other; None where that cannot be read."""
    found = _device_control(address)
    return bool(found[1] & _RELAXED_ORDERING) if found else None


def leads_down(address: str) -> bool:
    """Whether a bridge is a switch's port towards devices."""
    data = _config(address)
    ports = [place + _KIND for kind, place in _capabilities(data) if kind == _EXPRESS]
    return any(place < len(data) and data[place] >> 4 == _DOWNSTREAM for place in ports)


def redirects(address: str) -> bool:
    """Whether a bridge sends what passes between the devices below it up to the root (ACS)."""
    data, place = _config(address), _EXTENDED
    for _ in range(96):
        if place < _EXTENDED or place + 8 > len(data):
            return False
        if _number(data, place) == _ACS:
            return bool(_number(data, place + _ACS_CONTROL) & _REDIRECTS)
        place = _number(data, place + 2) >> 4
    return False


def iommu(address: str) -> str:
    """What the IOMMU does with a device: `off`, `identity` (passes it through) or the kind of translation."""
    return word(address, "iommu_group/type") or NO_IOMMU
