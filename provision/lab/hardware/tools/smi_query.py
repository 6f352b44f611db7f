"""`nvidia-smi --query-...`: chosen fields as comma separated values. The fields are in query.layout."""

from __future__ import annotations

import time

import state
from smi_report import layout
from smi_values import graphics_clocks, values

MYPY = False
if MYPY:
    from typing import Any


CLOCK_FIELDS = {"memory": "memory", "mem": "memory", "graphics": "graphics", "gr": "graphics"}
APP_FIELDS = {
    "timestamp": "timestamp",
    "gpu_name": "gpu_name",
    "gpu_bus_id": "gpu_bus_id",
    "gpu_serial": "gpu_serial",
    "gpu_uuid": "gpu_uuid",
    "pid": "pid",
    "process_name": "process_name",
    "name": "process_name",
    "used_gpu_memory": "used_gpu_memory [MiB]",
    "used_memory": "used_gpu_memory [MiB]",
}


class UnknownFieldError(Exception):
    """A field that nvidia-smi does not know."""


def known_fields() -> dict[str, Any]:
    """Every field by name and alias: (names, unit, value)."""
    fields = {}
    for line in layout("query"):
        names, unit, value = ([part.strip() for part in line.split("|")] + ["", ""])[:3]
        entry = (names.split(), unit, value)
        fields |= dict.fromkeys(entry[0], entry)
    return fields


def gpus(hardware: state.Hardware, cards: list[state.Gpu], wanted: list[str], header: bool, units: bool) -> list[str]:
    """The fields of each card, one line a card."""
    fields = known_fields()
    chosen = [_look_up(fields, name) for name in wanted]
    lines = []
    if header:
        lines.append(", ".join(names[0] + (f" [{unit}]" if unit else "") for names, unit, _ in chosen))
    now = time.time()
    stamp = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
    for card in cards:
        told = values(hardware, card) | {"timestamp": stamp}
        lines.append(", ".join(_cell(unit if units else "", value, told) for _, unit, value in chosen))
    return lines


def supported_clocks(
    hardware: state.Hardware, cards: list[state.Gpu], wanted: list[str], header: bool, units: bool
) -> list[str]:
    """Every pair of memory and graphics clocks that a card supports."""
    chosen = [_look_up(CLOCK_FIELDS, name) for name in wanted]
    lines = [", ".join(f"{name} [MHz]" for name in chosen)] if header else []
    card, unit = hardware["profile"]["gpus"], " MHz" if units else ""
    for _ in cards:
        for memory in card["memory_clocks"]:
            for graphics in graphics_clocks(card):
                pair = {"memory": memory, "graphics": graphics}
                lines.append(", ".join(f"{pair[name]}{unit}" for name in chosen))
    return lines


def processes(wanted: list[str], header: bool) -> list[str]:
    """The processes on the cards: simulated cards compute nothing, so there are none."""
    chosen = [_look_up(APP_FIELDS, name) for name in wanted]
    return [", ".join(chosen)] if header else []


def _look_up(fields: dict[str, Any], name: str) -> Any:  # noqa: ANN401  # a header or a field
    if name not in fields:
        raise UnknownFieldError(name)
    return fields[name]


def _cell(unit: str, value: str, told: dict[str, Any]) -> str:
    if not value:
        return "[N/A]"
    return value.format(**told) + (f" {unit}" if unit else "")
