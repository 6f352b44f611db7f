"""`/sys/bus/pci`, and the tree below `/sys/devices` that it points into: GPUs, NVSwitches, adapters, and their bridges.

Where the profile has NVSwitches, a GPU and the adapter of the next bus share a PCIe switch, as on HGX servers. Else
each hangs on a root port of its own, and those two ports on one host bridge.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from provision.lab.hardware.nodes import Directory, Hardware, Link, Registers

NVIDIA, MELLANOX, BROADCOM, INTEL = 0x10DE, 0x15B3, 0x1000, 0x8086
ADAPTERS = {"MT4129": 0x1021, "MT4123": 0x101B}  # ConnectX-7, ConnectX-6
ROOT_PORT, SWITCH = (INTEL, 0x352A, INTEL, 0), (BROADCOM, 0xC030, BROADCOM, 0)
SPEEDS = {4: "16.0 GT/s PCIe", 5: "32.0 GT/s PCIe"}
DEVICES = "sys/devices"
_BRIDGE = 0x060400
_EXPRESS, _CONTROL = (
    0x60,
    0x68,
)  # where each device here has its PCI Express capability, and therein its control register
_RELAXED_512 = 0x2930  # device control after boot: relaxed ordering, payloads of 256 bytes, read requests of 512


class _Place(NamedTuple):
    above: tuple[str, ...]  # what leads to a device, from the host bridge down
    numa: int


def bus(hardware: Hardware) -> Directory:
    """`devices/` and `drivers/`, with the kernel driver that holds each device."""
    places = _places(hardware["profile"])
    devices: Directory = {}
    drivers: dict[str, Any] = {}
    for address, device in _everything(hardware, places).items():
        devices[address] = Link("../../../devices/" + "/".join([*places[address].above, address]))
        if device["__driver"]:
            drivers.setdefault(device["__driver"], {})[address] = Link(f"../../devices/{address}")
    return {"devices": devices, "drivers": drivers}


def bridges(hardware: Hardware) -> Directory:
    """What `/sys/devices` holds: each host bridge, with all that hangs below it."""
    places = _places(hardware["profile"])
    tree: dict[str, Any] = {}
    for address, device in _everything(hardware, places).items():
        at = tree
        for step in places[address].above:
            at = at.setdefault(step, {})
        driver = device.pop("__driver")
        if driver:
            device["driver"] = Link("../" * (len(places[address].above) + 2) + f"bus/pci/drivers/{driver}")
        at.setdefault(address, {}).update(device)
    return tree


def path(hardware: Hardware, address: str) -> str:
    """A device's own directory, below /sys."""
    return "devices/" + "/".join([*_places(hardware["profile"])[address].above, address])


def _places(profile: dict[str, Any]) -> dict[str, _Place]:
    """Where each device sits; bridges too."""
    places: dict[str, _Place] = {}
    switches, ports = [str(address) for address in profile["nvswitches"]["bus_ids"]], profile["rdma"]
    for gpu, numa in zip(profile["gpus"].get("bus_ids", []), profile["gpus"].get("numa", []), strict=True):
        near = [port["pci"] for port in ports if _bus(port["pci"]) == _bus(gpu) + 1]
        _hang(places, _bus(gpu) - (3 if switches else 1), [gpu, *near], numa, bool(switches))
    for port in ports:
        if port["pci"] not in places:
            _hang(places, _bus(port["pci"]) - 1, [port["pci"]], port["numa"], is_switched=False)
    if switches:
        _hang(places, _bus(switches[0]) - 3, switches, 0, is_switched=True)
    return places


def _bus(address: str) -> int:
    return int(address.split(":")[1], 16)


def _hang(places: dict[str, _Place], first: int, devices: list[str], numa: int, is_switched: bool) -> None:
    """Put devices below a host bridge of their own, whose bus is `first`: on one switch, or each on its root port."""
    root = (f"pci0000:{first:02x}",)
    upper, above = f"0000:{first:02x}:01.0", f"0000:{first + 1:02x}:00.0"
    if is_switched:
        places[upper] = _Place(root, numa)
        places[above] = _Place((*root, upper), numa)
    for number, address in enumerate(devices):
        port = f"0000:{first + 2:02x}:{number:02x}.0" if is_switched else f"0000:{first:02x}:{2 * number + 1:02x}.1"
        places[port] = _Place((*root, upper, above) if is_switched else root, numa)
        places[address] = _Place((*places[port].above, port), numa)


def _everything(hardware: Hardware, places: dict[str, _Place]) -> dict[str, Any]:
    devices = _gpus(hardware) | _nvswitches(hardware) | _adapters(hardware)
    for address, place in places.items():
        if address not in devices:
            ids = SWITCH if len(place.above) > 1 else ROOT_PORT
            devices[address] = _device(hardware, address, ids, _BRIDGE, place.numa, 5, "pcieport")
    return devices


def _gpus(hardware: Hardware) -> dict[str, Any]:
    card = hardware["profile"]["gpus"]
    if not card["count"]:
        return {}
    ids = NVIDIA, int(card["pci_device"], 16), NVIDIA, int(card["pci_subsystem"], 16)
    driver = _gpu_driver(hardware)
    return {
        gpu["bus_id"]: _device(hardware, gpu["bus_id"], ids, 0x030200, gpu["numa"], card["pcie_gen"], driver)
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
    return {address: _device(hardware, address, ids, 0x068000, 0, 4, driver) for address in switches["bus_ids"]}


def _adapters(hardware: Hardware) -> dict[str, Any]:
    found = {}
    for port in hardware["profile"]["rdma"]:
        found[port["pci"]] = _device(
            hardware,
            port["pci"],
            (MELLANOX, ADAPTERS[port["adapter"]], MELLANOX, 0x0041),
            0x020700 if port["type"] == "ib" else 0x020000,
            port["numa"],
            5 if port["adapter"] == "MT4129" else 4,
            "mlx5_core",
        )
        found[port["pci"]]["net"] = {interface(port): _interface(port, hardware["rdma"][port["name"]])}
    return found


def interface(port: dict[str, Any]) -> str:
    """How udev names the network interface of a port."""
    return f"ib{_name(port)}" if port["type"] == "ib" else f"en{_name(port)}np0"


def _name(port: dict[str, Any]) -> str:
    return f"p{_bus(port['pci'])}s0"


def _interface(port: dict[str, Any], now: dict[str, Any]) -> Directory:
    up = now["link"] == "up"
    return {
        "mtu": "2044\n" if port["type"] == "ib" else "1500\n",
        "type": "32\n" if port["type"] == "ib" else "1\n",
        "operstate": "up\n" if up else "down\n",
        "speed": f"{port['rate'] * 1000}\n" if up else "-1\n",
    }


def _device(
    hardware: Hardware,
    address: str,
    ids: tuple[int, int, int, int],
    pci_class: int,
    numa: int,
    generation: int,
    driver: str | None,
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
        "config": Registers(
            _configuration_space(ids, pci_class, hardware.get("registers", {}).get(address, _RELAXED_512)),
            lambda changed, offset, data: _write(changed, address, offset, data),
        ),
        "__driver": driver,
    }


def _configuration_space(ids: tuple[int, int, int, int], pci_class: int, control: int) -> bytes:
    vendor, device, subsystem_vendor, subsystem = ids
    bridge = pci_class == _BRIDGE
    header = struct.pack("<HHHHB", vendor, device, 0x0406, 0x0010, 0xA1) + pci_class.to_bytes(3, "little")
    space = bytearray(header.ljust(256, b"\0"))
    space[0x0E] = int(bridge)
    if not bridge:
        space[0x2C:0x30] = struct.pack("<HH", subsystem_vendor, subsystem)
    space[0x34] = _EXPRESS
    kind = {ROOT_PORT[0]: 4, SWITCH[0]: 5}.get(vendor, 0)  # root port, switch port, endpoint
    space[_EXPRESS : _EXPRESS + 4] = struct.pack("<BBH", 0x10, 0, 2 | kind << 4)
    space[_CONTROL : _CONTROL + 2] = struct.pack("<H", control)
    return bytes(space)


def _write(hardware: Hardware, address: str, offset: int, data: bytes) -> None:
    """Of the configuration space the device control register takes a write; others are as the device has them."""
    if (offset, len(data)) == (_CONTROL, 2):
        hardware.setdefault("registers", {})[address] = struct.unpack("<H", data)[0]
