"""`nvidia-smi -q`: the long report, as text, as XML, or only some of its displays, all made from report.layout."""

from __future__ import annotations

import os
import time

import state
from smi_values import bus_id, graphics_clocks, values

MYPY = False
if MYPY:
    from typing import Any


CUDA = "13.0"
DISPLAYS = [
    "MEMORY",
    "UTILIZATION",
    "ECC",
    "TEMPERATURE",
    "POWER",
    "CLOCK",
    "COMPUTE",
    "PIDS",
    "PERFORMANCE",
    "SUPPORTED_CLOCKS",
    "PAGE_RETIREMENT",
    "ACCOUNTING",
    "ENCODER_STATS",
    "SUPPORTED_GPU_TARGET_TEMP",
    "VOLTAGE",
    "FBC_STATS",
    "ROW_REMAPPER",
    "GSP_FIRMWARE_VERSION",
    "POWER_SMOOTHING",
    "POWER_PROFILES",
]
_XML_HEAD = '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v13.dtd">\n<nvidia_smi_log>\n'


def layout(name: str) -> list[str]:
    """The lines of a layout file, without its comments."""
    with open(os.path.join(os.path.dirname(__file__), f"{name}.layout"), encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if not line.startswith("#")]


def text(hardware: state.Hardware, gpus: list[state.Gpu], displays: list[str] | None) -> str:
    """The report in text; `displays` names the parts that were asked for with -d, None means all."""
    lines = ["", "==============NVSMI LOG==============", ""]
    lines += [_line(0, *pair) for pair in _head(hardware)] + [""]
    lines.append(_line(0, "Attached GPUs", len(hardware["gpus"])))
    table = _entries(displays)
    for gpu in gpus:
        told = values(hardware, gpu)
        lines.append(f"GPU {told['pci_bus_id']}")
        for level, tag, label, value in table:
            if tag == "!supported_clocks":
                lines += _supported_text(hardware["profile"]["gpus"]) if displays else []
            elif label is not None:
                lines.append(_line(level + 1, label, value and value.format(hex="0x", **told)))
        lines.append("")
    return "\n".join(lines) + "\n"


def xml(hardware: state.Hardware, gpus: list[state.Gpu]) -> str:
    """The report as XML."""
    table = _entries(None)
    tags = ["timestamp", "driver_version", "cuda_version"]
    lines = [f"\t<{tag}>{value}</{tag}>" for tag, (_, value) in zip(tags, _head(hardware), strict=True)]
    lines.append(f"\t<attached_gpus>{len(hardware['gpus'])}</attached_gpus>")
    for gpu in gpus:
        lines.append(f'\t<gpu id="{bus_id(gpu)}">')
        lines += _gpu_xml(hardware, values(hardware, gpu), table)
        lines += ["\t</gpu>", ""]
    return _XML_HEAD + "\n".join(lines) + "\n</nvidia_smi_log>\n"


def _head(hardware: state.Hardware) -> list[tuple[str, str]]:
    return [
        ("Timestamp", time.strftime("%a %b %e %H:%M:%S %Y")),
        ("Driver Version", hardware["driver"]["loaded"]),
        ("CUDA Version", CUDA),
    ]


def _line(level: int, label: str, value: object) -> str:
    return f"{' ' * 4 * level + label:<55}: {value}" if value is not None else " " * 4 * level + label


def _entries(displays: list[str] | None) -> list[Any]:
    """(level, tag, label, value) of each line that is shown; groups have no value, absent forms no tag or label."""
    entries, shown = [], True
    for line in layout("report"):
        body = line.lstrip(" ")
        if body == line:  # a top-level line decides for the lines below it
            display, _, rest = body.partition(": ")
            display, body = (display, rest) if display.lstrip("+").replace("_", "").isupper() else ("", body)
            name = "SUPPORTED_CLOCKS" if body == "!supported_clocks" else display.lstrip("+")
            shown = name in displays if displays else not display.startswith("+")
        if shown:
            tag, label, value = [*body.split(" | "), None, None][:3]
            entries.append(((len(line) - len(line.lstrip(" "))) // 2, tag, None if label == "-" else label, value))
    return entries


def _gpu_xml(hardware: state.Hardware, told: dict[str, Any], table: list[Any]) -> list[str]:
    lines, closing = [], []
    for level, tag, _, value in table:
        while closing and closing[-1][0] >= level:
            depth, name = closing.pop()
            lines.append(f"{chr(9) * (depth + 2)}</{name}>")
        indent = "\t" * (level + 2)
        if tag.startswith("!"):
            lines += _special(tag[1:], hardware["profile"]["gpus"])
        elif tag == "-":
            continue
        elif value is None:
            lines.append(f"{indent}<{tag}>")
            closing.append((level, tag))
        else:
            lines.append(f"{indent}<{tag}>{value.format(hex='', **told)}</{tag}>")
    return lines + [f"{chr(9) * (depth + 2)}</{name}>" for depth, name in reversed(closing)]


def _special(tag: str, card: dict[str, Any]) -> list[str]:
    if tag == "mig_devices":
        return ["\t\t<mig_devices>", "\t\t\tNone", "\t\t</mig_devices>"]
    if tag == "accounted_processes":
        return ["\t\t<processes>", "\t\t</processes>", "\t\t<accounted_processes>", "\t\t</accounted_processes>"]
    clock = "\t\t\t\t<supported_graphics_clock>{} MHz</supported_graphics_clock>"
    lines = ["\t\t<supported_clocks>"]
    for memory in card["memory_clocks"]:
        lines += ["\t\t\t<supported_mem_clock>", f"\t\t\t\t<value>{memory} MHz</value>"]
        lines += [clock.format(graphics) for graphics in graphics_clocks(card)] + ["\t\t\t</supported_mem_clock>"]
    return [*lines, "\t\t</supported_clocks>"]


def _supported_text(card: dict[str, Any]) -> list[str]:
    lines = ["    Supported Clocks"]
    for memory in card["memory_clocks"]:
        lines.append(_line(2, "Memory", f"{memory} MHz"))
        lines += [_line(3, "Graphics", f"{graphics} MHz") for graphics in graphics_clocks(card)]
    return lines
