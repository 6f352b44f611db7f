"""Making the hardware of one host from a profile, and what a power cycle does to it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from provision.content import hardware_profiles
from provision.errors import LabError
from provision.lab.hardware import state

# A server without cards: a gateway or a monitor of the fleet.
NO_CARDS: dict[str, Any] = {
    "gpus": {"count": 0, "architecture": "none", "power": {"default": 0}},
    "nvswitches": {"count": 0, "pci_device": "0x22a3", "bus_ids": []},
    "numa_nodes": ["0-31"],
    "rdma": [],
}


def create(state_file: Path, profile: str | None, host: str) -> None:
    """Write the state of a new bare host: cards of the profile, no driver, everything as the factory set it.

    The same host of the same profile always gets the same serial numbers and GUIDs, as a real machine keeps its own.
    """
    profiles = hardware_profiles()
    if profile is not None and profile not in profiles:
        raise LabError(f"There is no hardware profile {profile}. Known: {', '.join(sorted(profiles))}.")
    described: dict[str, Any] = NO_CARDS if profile is None else profiles[profile]
    hardware: dict[str, Any] = {
        "host": host,
        "profile_name": profile,
        "profile": described,
        "boots": 0,
        "booted": 0.0,
        "kernel_log": [],
        "driver": {"installed": None, "flavour": "open", "loaded": None, "loaded_flavour": "open"},
        "modules": [],
        "clients": {},
        "knobs": {},
        "governors": {},
        "swaps": [],
        "gpus": [_gpu(described["gpus"], host, index) for index in range(described["gpus"]["count"])],
        "faults": {},
        "registers": {},
        "rdma": {port["name"]: _port(port, host, index) for index, port in enumerate(described["rdma"], start=1)},
    }
    for gpu in hardware["gpus"]:
        state.reset_gpu(hardware, gpu)
    state_file.parent.mkdir(parents=True, exist_ok=True)
    state.write(str(state_file), hardware)


def power_on(state_file: Path) -> None:
    """Called before every boot: what real hardware loses is lost, pending modes become current."""
    with state.Change(str(state_file)) as hardware:
        state.reboot(hardware)


def _gpu(card: dict[str, Any], host: str, index: int) -> dict[str, Any]:
    seed = _seed(host, "gpu", index)
    return {
        "index": index,
        "uuid": f"GPU-{seed[:8]}-{seed[8:12]}-{seed[12:16]}-{seed[16:20]}-{seed[20:32]}",
        "serial": str(1650000000000 + int(seed[32:42], 16) % 10**9),
        "pdi": f"0x{seed[42:58]}",
        "bus_id": card["bus_ids"][index],
        "numa": card["numa"][index],
        "module_id": index + 1,
        "lost": False,
        "ecc_current": "Enabled",
        "ecc_pending": "Enabled",
        "mig_current": "Disabled",
        "mig_pending": "Disabled",
        "ecc_errors": {kind: _no_errors() for kind in ("volatile", "aggregate")},
        "remapped_rows": {"correctable": 0, "uncorrectable": 0, "pending": 0, "failure": False},
        "temperature": 29 + int(seed[58:60], 16) % 9,
    }


def _no_errors() -> dict[str, int]:
    return dict.fromkeys(
        ("sram_correctable", "sram_parity", "sram_secded", "dram_correctable", "dram_uncorrectable"), 0
    )


def _port(port: dict[str, Any], host: str, number: int) -> dict[str, Any]:
    seed = _seed(host, "rdma", number)
    return {
        "guid": f"{seed[:6]}0300{seed[6:12]}",
        "link": "up",
        "lid": int(seed[12:16], 16) % 0xBFFF + 1 if port["type"] == "ib" else 0,
    }


def _seed(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()
