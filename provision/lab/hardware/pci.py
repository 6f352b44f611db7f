"""`/sys/bus/pci`: GPUs, NVSwitches and network adapters, as `lspci` and any other tool finds them."""

from __future__ import annotations

import struct
from typing import Any

from provision.lab.hardware.nodes import Directory, Hardware, Link

NVIDIA, MELLANOX = 0x10DE, 0x15B3
ADAPTERS = {"MT4129": 0x1021, "MT4123": 0x101B}  # ConnectX-7, ConnectX-6
SPEEDS = {4: "16.0 GT/s PCIe", 5: "32.0 GT/s PCIe"}


def bus(hardware: Hardware) -> Directory:
    """`devices/` and `drivers/`, with the kernel driver that holds each device."""
    devices = _gpus(hardware) | _nvswitches(hardware) | _adapters(hardware)
    drivers: dict[str, Any] = {}
    for address, device in devices.items():
        driver = device.pop("__driver")
        if driver:
            device["driver"] = Link(f"../../drivers/{driver}")
            drivers.setdefault(driver, {})[address] = Link(f"../../devices/{address}")
    return {"devices": devices, "drivers": drivers}


def _gpus(hardware: Hardware) -> dict[str, Any]:
    card = hardware["profile"]["gpus"]
    if not card["count"]:
        return {}
    ids = int(card["pci_device"], 16), NVIDIA, int(card["pci_subsystem"], 16)
    driver = _gpu_driver(hardware)
    return {
        gpu["bus_id"]: _device(hardware, (NVIDIA, *ids), 0x030200, gpu["numa"], card["pcie_gen"], driver)
        for gpu in hardware["gpus"]
    }


def _gpu_driver(hardware: Hardware) -> str | None:
    if "nvidia" in hardware["modules"]:
        return "nvidia"
    ampere = hardware["profile"]["gpus"]["architecture"] == "Ampere"
    return "nouveau" if ampere and "nouveau" in hardware["modules"] else None


def _nvswitches(hardware: Hardware) -> dict[str, Any]:
    switches = hardware["profile"]["nvswitches"]
    ids = NVIDIA, int(switches["pci_device"], 16), NVIDIA, 0x1796
    driver = "nvidia-nvswitch" if "nvidia" in hardware["modules"] else None
    return {address: _device(hardware, ids, 0x068000, 0, 4, driver) for address in switches["bus_ids"]}


def _adapters(hardware: Hardware) -> dict[str, Any]:
    return {
        port["pci"]: _device(
            hardware,
            (MELLANOX, ADAPTERS[port["adapter"]], MELLANOX, 0x0041),
            0x020700 if port["type"] == "ib" else 0x020000,
            port["numa"],
            5 if port["adapter"] == "MT4129" else 4,
            "mlx5_core",
        )
        for port in hardware["profile"]["rdma"]
    }


def _device(
    hardware: Hardware, ids: tuple[int, int, int, int], pci_class: int, numa: int, generation: int, driver: str | None
) -> dict[str, Any]:
    vendor, device, subsystem_vendor, subsystem = ids
    return {
        "vendor": f"0x{vendor:04x}\n",
        "device": f"0x{device:04x}\n",
        "subsystem_vendor": f"0x{subsystem_vendor:04x}\n",
        "subsystem_device": f"0x{subsystem:04x}\n",
        "class": f"0x{pci_class:06x}\n",
        "revision": "0xa1\n",
        "numa_node": f"{numa}\n",
        "local_cpulist": f"{hardware['profile']['numa_nodes'][numa]}\n",
        "irq": "0\n",
        "enable": f"{int(driver is not None)}\n",
        "current_link_speed": f"{SPEEDS[generation]}\n",
        "max_link_speed": f"{SPEEDS[generation]}\n",
        "current_link_width": "16\n",
        "max_link_width": "16\n",
        "modalias": f"pci:v{vendor:08X}d{device:08X}sv{subsystem_vendor:08X}sd{subsystem:08X}"
        f"bc{pci_class >> 16:02X}sc{pci_class >> 8 & 0xFF:02X}i{pci_class & 0xFF:02X}\n",
        "resource": "0x0000000000000000 0x0000000000000000 0x0000000000000000\n" * 13,
        "config": _configuration_space(ids, pci_class),
        "__driver": driver,
    }


def _configuration_space(ids: tuple[int, int, int, int], pci_class: int) -> bytes:
    vendor, device, subsystem_vendor, subsystem = ids
    header = struct.pack("<HHHHB", vendor, device, 0x0406, 0x0010, 0xA1) + pci_class.to_bytes(3, "little")
    return header.ljust(0x2C, b"\0") + struct.pack("<HH", subsystem_vendor, subsystem).ljust(256 - 0x2C, b"\0")
