"""What may lead traffic between GPUs and adapters astray: the IOMMU, and access control (ACS) in PCIe switches."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.provision_host import read_text
from ansible.module_utils.provision_look import pci_devices

DEVICES = "/sys/bus/pci/devices"
BRIDGE, GPU = "0x0604", ("0x0302", "0x0300")
EXPRESS, ACS = 0x10, 0x000D  # the PCI Express capability; the extended capability of access control
EXTENDED = 0x100  # where extended capabilities begin in configuration space
DOWNSTREAM = 6  # a port of a switch that leads to devices
REDIRECT = 0x04 | 0x08  # requests, and completions, between devices go up to the root complex


def look(_asked: Mapping[str, Any]) -> dict[str, Any]:
    """How the IOMMU treats the GPUs (`identity`, `DMA`, `DMA-FQ`; none without one), and the switches that redirect."""
    gpus = [device["address"] for device in pci_devices() if device["kind"].startswith(GPU)]
    groups = (read_text(f"{DEVICES}/{address}/iommu_group/type") for address in gpus)
    return {"iommu": sorted({text.strip() for text in groups if text}), "acs_redirect": list(redirecting(DEVICES))}


def redirecting(root: str) -> Iterator[str]:
    """The downstream ports of switches that redirect what devices send each other."""
    for device in sorted(Path(root).iterdir()) if Path(root).is_dir() else []:
        if (read_text(str(device / "class")) or "").startswith(BRIDGE):
            space = (device / "config").read_bytes()
            if port_type(space) == DOWNSTREAM and acs_control(space) & REDIRECT:
                yield device.name


def port_type(space: bytes) -> int:
    """The kind of port, from the PCI Express capability in a device's configuration space; -1 without one."""
    place = space[0x34] & 0xFC
    while place:
        kind, following = space[place], space[place + 1]
        if kind == EXPRESS:
            return space[place + 2] >> 4
        place = following & 0xFC
    return -1


def acs_control(space: bytes) -> int:
    """The control register of access control; 0 where the device has none, or root may not see so far."""
    place = EXTENDED
    while EXTENDED <= place <= len(space) - 8:
        (header,) = struct.unpack_from("<I", space, place)
        if header & 0xFFFF == ACS:
            return int(struct.unpack_from("<H", space, place + 6)[0])
        place = header >> 20
    return 0
