"""Everything that nvidia-smi may print of one GPU, as text without units, from the state of the hardware."""

from __future__ import annotations

import state

MYPY = False
if MYPY:
    from typing import Any


def values(hardware: state.Hardware, gpu: state.Gpu) -> dict[str, Any]:
    card, profile = hardware["profile"]["gpus"], hardware["profile"]
    remapped = gpu["remapped_rows"]
    told = {key: card[key] for key in ("name", "brand", "architecture", "vbios", "board_part", "gpu_part", "inforom")}
    told |= {key: card[key] for key in ("compute_cap", "pcie_gen", "row_banks")}
    told |= {key: gpu[key] for key in ("index", "uuid", "serial", "pdi", "module_id", "compute_mode", "temperature")}
    told |= {key: gpu[key] for key in ("mig_current", "mig_pending", "ecc_current", "ecc_pending")}
    told |= _errors(gpu["ecc_errors"]) | _clocks(card, gpu) | _fabric(gpu["fabric"]) | _pci(card, gpu)
    return told | {
        "driver": hardware["driver"]["loaded"],
        "count": len(hardware["gpus"]),
        "persistence": "Enabled" if state.persistent(hardware, gpu) else "Disabled",
        "memory_total": card["memory_mib"],
        "memory_reserved": card["reserved_mib"],
        "memory_used": 0,
        "memory_free": card["memory_mib"] - card["reserved_mib"],
        "bar1_total": card["bar1_mib"],
        "bar1_free": card["bar1_mib"] - 1,
        "temperature_limit": 87 - gpu["temperature"],
        "temperature_memory": gpu["temperature"] + 2,
        "power_draw": f"{card['idle_power'] + gpu['temperature'] / 10:.2f}",
        "power_memory": "38.73",
        "power_limit": f"{gpu['power_limit']:.2f}",
        "power_default": f"{card['power']['default']:.2f}",
        "power_min": f"{card['power']['min']:.2f}",
        "power_max": f"{card['power']['max']:.2f}",
        "remapped_correctable": remapped["correctable"],
        "remapped_uncorrectable": remapped["uncorrectable"],
        "remapped_pending": "Yes" if remapped["pending"] else "No",
        "remapped_failure": "Yes" if remapped["failure"] else "No",
        "recovery": "Reset" if remapped["pending"] else "None",
        "nvswitches": profile["nvswitches"]["count"],
    }


def bus_id(gpu: state.Gpu) -> str:
    """`0000:18:00.0` as NVML writes it, with a domain of eight digits and in capitals."""
    return f"0000{gpu['bus_id']}".upper()


def graphics_clocks(card: dict[str, Any]) -> range:
    """The supported graphics clocks, highest first, in MHz."""
    clock = card["graphics_clock"]
    return range(clock["max"], clock["min"] - 1, -clock["step"])


def _clocks(card: dict[str, Any], gpu: state.Gpu) -> dict[str, int]:
    clocks = graphics_clocks(card)
    low, high = gpu["graphics_lock"] or (clocks[-1], clocks[0])
    allowed = [clock for clock in clocks if low <= clock <= high]
    # An idle card runs at its idle clock, a locked one no slower than the lock: that is how a lock can be read back.
    nearest = min(clocks, key=lambda clock: abs(clock - low))
    memory_low, memory_high = gpu["memory_lock"] or (0, card["memory_clocks"][0])
    memory = [clock for clock in card["memory_clocks"] if memory_low <= clock <= memory_high]
    application = gpu["application_clocks"] or (card["memory_clocks"][0], card["application_clock"])
    return {
        "clock_graphics": max(card["idle_clock"], allowed[-1] if allowed else nearest),
        "clock_memory": memory[0] if memory else card["memory_clocks"][-1],
        "clock_max_graphics": clocks[0],
        "clock_max_memory": card["memory_clocks"][0],
        "clock_max_video": card["video_clock"],
        "application_graphics": application[1],
        "application_memory": application[0],
        "application_default": card["application_clock"],
    }


def _errors(errors: dict[str, dict[str, int]]) -> dict[str, int]:
    told = {}
    for kind, counts in errors.items():
        told |= {f"{kind}_{name}": count for name, count in counts.items()}
        sram = counts["sram_parity"] + counts["sram_secded"]
        told[f"{kind}_sram_uncorrected"] = sram
        told[f"{kind}_uncorrected"] = sram + counts["dram_uncorrectable"]
        told[f"{kind}_corrected"] = counts["sram_correctable"] + counts["dram_correctable"]
    return told


def _fabric(fabric: str) -> dict[str, str]:
    known = fabric != "N/A"
    return {
        "fabric_state": fabric,
        "fabric_status": "Success" if fabric == "Completed" else "N/A",
        "fabric_clique": "0" if known else "N/A",
        "fabric_cluster": "00000000-0000-0000-0000-000000000000" if known else "N/A",
    }


def _pci(card: dict[str, Any], gpu: state.Gpu) -> dict[str, str]:
    _, bus, slot = gpu["bus_id"].upper().split(":")
    return {
        "pci_bus_id": bus_id(gpu),
        "pci_bus": bus,
        "pci_slot": slot.split(".")[0],
        "pci_device_id": f"{card['pci_device'][2:].upper()}10DE",
        "pci_subsystem_id": f"{card['pci_subsystem'][2:].upper()}10DE",
        "board_id": f"0x{int(bus, 16) << 8 | int(slot.split('.')[0], 16):x}",
    }
