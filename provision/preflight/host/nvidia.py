"""The driver that is loaded, and what it says of GPUs, NVLink and fabric.

nvidia-smi is asked only where the module is loaded already: it would load it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ansible.module_utils.provision_driver import loaded_module, loaded_version, query_gpus
from ansible.module_utils.provision_host import HostError, run

from provision.preflight.host.processes import describe, holders

FIELDS = (
    "index", "name", "pci.bus_id", "memory.total", "mig.mode.current", "ecc.mode.current",
    "ecc.errors.uncorrected.volatile.total", "remapped_rows.pending", "remapped_rows.failure", "fabric.state",
    "fabric.status",
)  # fmt: skip
QUESTIONS = (
    ("--query-compute-apps=pid,name,used_memory", "--format=csv,noheader,nounits"),
    ("nvlink", "--status"),
    ("topo", "-m"),
)
WAIT_S = 35  # for each of two rounds of questions


def look(_asked: Mapping[str, Any]) -> dict[str, Any]:
    """Everything; little of it without a loaded module."""
    loaded = loaded_version()
    found = {
        "loaded": loaded,
        "is_open": loaded_module().flavour == "open",
        "fabric_manager": fabric_manager(),
        "processes": [],
        "gpus": [],
        "error": "",
        "links": [],
        "topology": {},
    }
    if not loaded:
        return found
    try:
        found["gpus"] = [gpu(row) for row in query_gpus(FIELDS, WAIT_S)]
    except HostError as error:
        return {**found, "error": str(error), "processes": processes("")}
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        apps, shown, matrix = pool.map(_ask, QUESTIONS)
    return {**found, "processes": processes(apps), "links": links(shown), "topology": topology(matrix)}


def _ask(arguments: Sequence[str]) -> str:
    return str(run(["nvidia-smi", *arguments], check=False, timeout_s=WAIT_S).out)


def fabric_manager() -> str:
    """The state of its unit; empty where there is none."""
    shown = run(["systemctl", "show", "--property=LoadState,ActiveState", "nvidia-fabricmanager.service"], check=False)
    said = dict(line.split("=", 1) for line in shown.out.splitlines() if "=" in line)
    return str(said.get("ActiveState", "")) if said.get("LoadState") == "loaded" else ""


def gpu(row: Mapping[str, str]) -> dict[str, Any]:
    """One GPU of `nvidia-smi --query-gpu`, numbers as numbers."""
    return {
        "index": number(row["index"]),
        "name": row["name"],
        "address": row["pci.bus_id"].lower()[-12:],
        "memory_mib": number(row["memory.total"]),
        "mig": row["mig.mode.current"] == "Enabled",
        "ecc": row["ecc.mode.current"] == "Enabled",
        "uncorrected": number(row["ecc.errors.uncorrected.volatile.total"]),
        "remap_pending": row["remapped_rows.pending"].lower() in ("yes", "1"),
        "remap_failed": row["remapped_rows.failure"].lower() in ("yes", "1"),
        "fabric": f"{row['fabric.state']} {row['fabric.status']}",
    }


def number(text: str) -> int:
    """A whole number, 0 where the card does not say."""
    return int(text) if text.isdigit() else 0


def links(text: str) -> list[dict[str, int]]:
    """How many NVLinks of each GPU are up, and how many are not, from `nvidia-smi nvlink --status`."""
    found: list[dict[str, int]] = []
    for line in text.splitlines():
        if line.startswith("GPU "):
            found.append({"up": 0, "down": 0})
        elif found and "Link " in line:
            found[-1]["up" if "GB/s" in line else "down"] += 1
    return found


def topology(text: str) -> dict[str, dict[str, str]]:
    """How the GPUs are joined to each other and to adapters, from `nvidia-smi topo -m`."""
    rows = [re.sub(r"\x1b\[\d+m", "", line).rstrip().split("\t") for line in text.splitlines()]
    heads = next((row for row in rows if row[0] == "" and len(row) > 1 and row[1].startswith("GPU")), [])
    names = [name.strip() for name in heads[1:] if re.fullmatch(r"(GPU|NIC)\d+", name.strip())]
    return {
        row[0].strip(): {name: cell.strip() for name, cell in zip(names, row[1:]) if cell.strip() != "X"}  # noqa: B905
        for row in rows
        if re.fullmatch(r"GPU\d+", row[0].strip()) and len(row) > len(names)
    }


def processes(apps: str) -> list[dict[str, Any]]:
    """Who uses a GPU: by the driver's own list, and by who has a card's device open."""
    memory = {}
    for line in apps.splitlines():
        words = [word.strip() for word in line.split(",")]
        if words[0].isdigit():
            memory[int(words[0])] = number(words[-1])
    cards: dict[int, list[int]] = {pid: [] for pid in memory}
    for target, pids in sorted(_cards().items()):
        for pid in pids:
            cards.setdefault(pid, []).append(int(target.removeprefix("/dev/nvidia")))
    return [
        {**describe(pid), "gpus": sorted(own), "memory_mib": memory.get(pid, 0)} for pid, own in sorted(cards.items())
    ]


def _cards() -> dict[str, Iterable[int]]:
    return {target: pids for target, pids in holders().items() if target.startswith("/dev/nvidia")}
