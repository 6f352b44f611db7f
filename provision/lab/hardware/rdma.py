"""`/sys/class/infiniband`: one directory for each RDMA port's device, in the words of the kernel."""

from __future__ import annotations

from typing import Any

from provision.lab.hardware import pci
from provision.lab.hardware.nodes import Directory, Hardware, Link

FIRMWARE = {"MT4129": "28.43.2566", "MT4123": "20.43.2566"}
SPEEDS = {400: "400 Gb/sec (4X NDR)", 200: "200 Gb/sec (4X HDR)", 100: "100 Gb/sec (4X EDR)"}
COUNTERS = [
    "VL15_dropped",
    "excessive_buffer_overrun_errors",
    "link_downed",
    "link_error_recovery",
    "local_link_integrity_errors",
    "port_rcv_constraint_errors",
    "port_rcv_data",
    "port_rcv_errors",
    "port_rcv_packets",
    "port_rcv_remote_physical_errors",
    "port_rcv_switch_relay_errors",
    "port_xmit_constraint_errors",
    "port_xmit_data",
    "port_xmit_discards",
    "port_xmit_packets",
    "port_xmit_wait",
    "symbol_error",
]
SUBNET = "fe80:0000:0000:0000"


def devices(hardware: Hardware) -> Directory:
    """Each device by its name; they come with the kernel's own mlx5 driver, so a bare host has them too."""
    if "mlx5_ib" not in hardware["modules"]:
        return {}
    return {
        port["name"]: _device(port, hardware["rdma"][port["name"]], pci.path(hardware, port["pci"]))
        for port in hardware["profile"]["rdma"]
    }


def colons(guid: str) -> str:
    """`a088c20300e3142a` as sysfs prints it: `a088:c203:00e3:142a`."""
    return ":".join(guid[start : start + 4] for start in range(0, 16, 4))


def _device(port: dict[str, Any], now: dict[str, Any], path: str) -> Directory:
    return {
        "board_id": "MT_0000000838\n" if port["adapter"] == "MT4129" else "MT_0000000223\n",
        "fw_ver": f"{FIRMWARE[port['adapter']]}\n",
        "hca_type": f"{port['adapter']}\n",
        "hw_rev": "0\n",
        "node_desc": f"{port['name']}\n",
        "node_guid": f"{colons(now['guid'])}\n",
        "sys_image_guid": f"{colons(now['guid'])}\n",
        "node_type": "1: CA\n",
        "device": Link(f"../../../{path}"),
        "ports": {"1": _port(port, now)},
    }


def _port(port: dict[str, Any], now: dict[str, Any]) -> Directory:
    up, infiniband = now["link"] == "up", port["type"] == "ib"
    gid = f"{SUBNET}:{colons(now['guid'])}\n"
    return {
        "state": "4: ACTIVE\n" if up else "1: DOWN\n",
        "phys_state": "5: LinkUp\n" if up else ("2: Polling\n" if infiniband else "3: Disabled\n"),
        "rate": f"{SPEEDS[port['rate']] if up else '10 Gb/sec (4X SDR)'}\n",
        "link_layer": "InfiniBand\n" if infiniband else "Ethernet\n",
        "lid": f"0x{now['lid'] if up else 0xFFFF if infiniband else 0:x}\n",
        "lid_mask_count": "0\n",
        "sm_lid": "0x1\n" if infiniband and up else "0x0\n",
        "sm_sl": "0\n",
        "cap_mask": "0xa751e848\n" if infiniband else "0x00010000\n",
        **_gids(port, gid, now["guid"]),
        "pkeys": {"0": "0xffff\n"},
        "counters": {name: f"{int(not up)}\n" if name == "link_downed" else "0\n" for name in COUNTERS},
    }


def _gids(port: dict[str, Any], first: str, guid: str) -> Directory:
    """The port's addresses: of RoCE each twice, for either version, the link's own before the IPv4 address."""
    if port["type"] == "ib":
        return {"gids": {"0": first}, "gid_attrs": {"types": {"0": "IB/RoCE v1\n"}, "ndevs": {}}}
    mapped = f"0000:0000:0000:0000:0000:ffff:0a{guid[-6:-4]}:{guid[-4:]}\n"
    addresses, versions = [first, first, mapped, mapped], ["IB/RoCE v1\n", "RoCE v2\n"] * 2
    return {
        "gids": {str(index): address for index, address in enumerate(addresses)},
        "gid_attrs": {
            "types": {str(index): version for index, version in enumerate(versions)},
            "ndevs": {str(index): f"{pci.interface(port)}\n" for index in range(len(versions))},
        },
    }
