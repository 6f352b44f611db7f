"""The verdict as metrics, in the text form that node_exporter collects from files."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

EFFECTS = ("none", "reload", "restart", "reboot", "gpu_reset")
NAME = "provision_drift.prom"


def write(document: Mapping[str, Any], folder: str, seconds: float) -> None:
    """Put the metrics in place at once: the exporter never reads half of them."""
    Path(folder).mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = Path(folder, f".{NAME}.new")  # one name: what a killed run leaves, the next one takes over
    with open(beside, "w", encoding="utf-8") as handle:
        handle.write("".join(f"{line}\n" for line in lines(document["stages"], seconds)))
        os.fchmod(handle.fileno(), 0o644)  # the exporter is another user
    os.replace(beside, Path(folder, NAME))


def lines(stages: Mapping[str, Any], seconds: float) -> Iterator[str]:
    """Each metric with what it means."""
    yield "# HELP provision_drift_findings Things that differ from what the last bootstrap left, by effect of repair."
    yield "# TYPE provision_drift_findings gauge"
    for name, stage in stages.items():
        counts = Counter(change["effect"] for change in stage["changes"])
        for effect in EFFECTS:
            yield f'provision_drift_findings{{stage="{name}",effect="{effect}"}} {counts[effect]}'
    yield "# HELP provision_drift_stage_stands Whether all that a stage brought about is as it was left."
    yield "# TYPE provision_drift_stage_stands gauge"
    for name, stage in stages.items():
        stands = not (stage["changes"] or stage["facts"] or stage["error"])
        yield f'provision_drift_stage_stands{{stage="{name}"}} {int(stands)}'
    waits = any(change["effect"] == "reboot" for stage in stages.values() for change in stage["changes"])
    yield from _gauge("reboot_pending", "Whether repair takes a reboot.", int(waits))
    yield from _gauge("last_verified_timestamp_seconds", "When this was last verified.", round(time.time()))
    yield from _gauge("seconds", "How long verifying took.", round(seconds, 3))


def _gauge(name: str, meaning: str, value: float) -> Iterator[str]:
    yield f"# HELP provision_drift_{name} {meaning}"
    yield f"# TYPE provision_drift_{name} gauge"
    yield f"provision_drift_{name} {value}"
