"""Runs on a host, as root, fed to its Python on standard input: one JSON object of what is true there now.

Standard library only, Python 3.9 and later. Its argument is a JSON object: `units` (names to look at) and
`endpoint` (`url`, `model`, `key_file`, and `ray` if the replica spans hosts; null where no API runs on this host).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

GPU_FIELDS = [
    "index",
    "name",
    "memory.total",
    "memory.used",
    "utilization.gpu",
    "temperature.gpu",
    "clocks.current.sm",
    "power.draw",
    "persistence_mode",
    "ecc.errors.uncorrected.volatile.total",
    "fabric.state",
]
UNIT_FIELDS = "Id,LoadState,ActiveState,SubState,NRestarts,ActiveEnterTimestampMonotonic"
TIMEOUT_S = 20


def output(*argv: str) -> tuple[int, str]:
    """Exit status and text of a command; 127 where it is not installed, 124 where it hangs."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError:
        return 127, f"{argv[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]} did not answer in {TIMEOUT_S} s"
    return done.returncode, done.stdout or done.stderr


def driver() -> str | None:
    """The loaded driver's version; None where no module is loaded."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found.group() if found else None


def gpus() -> dict[str, Any]:
    """Each GPU as a dict of nvidia-smi's own field names, and whatever else nvidia-smi answers instead."""
    status, text = output("nvidia-smi", "--query-gpu=" + ",".join(GPU_FIELDS), "--format=csv,noheader,nounits")
    rows = [line.split(", ") for line in text.splitlines()]
    good = [dict(zip(GPU_FIELDS, row)) for row in rows if len(row) == len(GPU_FIELDS)]  # noqa: B905  Python 3.9
    bad = [", ".join(row) for row in rows if len(row) != len(GPU_FIELDS)]
    return {"gpus": good, "gpu_error": "\n".join(bad) or None if bad or status else None}


def units(names: list[str]) -> dict[str, Any]:
    """State of each systemd unit that exists on this host, and for how many seconds it has been active."""
    _, text = output("systemctl", "show", "--property", UNIT_FIELDS, *names)
    found = {}
    for block in text.strip().split("\n\n"):
        shown = dict(line.partition("=")[::2] for line in block.splitlines())
        if shown.get("LoadState") == "loaded":
            entered = int(shown["ActiveEnterTimestampMonotonic"]) / 1e6
            found[shown["Id"]] = {
                "active": shown["ActiveState"],
                "sub": shown["SubState"],
                "restarts": int(shown.get("NRestarts") or 0),
                "since_s": round(time.monotonic() - entered) if shown["ActiveState"] == "active" else None,
            }
    return found


def canary(endpoint: dict[str, Any]) -> dict[str, Any]:
    """One generated token through the API, timed: a status code alone proves nothing."""
    body = {"model": endpoint["model"], "prompt": "1 2 3", "max_tokens": 1, "ignore_eos": True}
    headers = {"Content-Type": "application/json"}
    start = time.monotonic()
    try:
        if endpoint["key_file"]:  # NAME="value", as systemd reads it
            key = json.loads(Path(endpoint["key_file"]).read_text().partition("=")[2])
            headers["Authorization"] = f"Bearer {key}"
        url = endpoint["url"] + "/v1/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310  http, from the inventory
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=TIMEOUT_S) as response:
            tokens = json.load(response)["usage"]["completion_tokens"]
    except (OSError, ValueError, KeyError) as error:
        return {"ok": False, "ms": None, "error": str(getattr(error, "reason", error)), "said": loading()}
    elapsed = round((time.monotonic() - start) * 1000)
    return {"ok": tokens > 0, "ms": elapsed, "error": None if tokens else "no token generated"}


def loading() -> str:
    """What vLLM said last, as it starts; its progress with the weights before all else."""
    status, text = output("journalctl", "-u", "vllm.service", "-n", "40", "-o", "cat", "--no-pager")
    lines = [re.sub(r"^\([^)]*\)\s*", "", line).strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "% Completed" in line), lines[-1] if lines and not status else "")


def ray_nodes() -> int | None:
    """How many hosts are in the Ray cluster of this head; None where it does not tell."""
    status, text = output("/opt/provision/bin/ray-nodes")
    return None if status else sum(node["alive"] for node in json.loads(text).values())


def main() -> None:
    """Write the JSON object."""
    wanted = json.loads(sys.argv[1])
    endpoint = wanted["endpoint"]
    facts = {
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "uptime_s": round(float(Path("/proc/uptime").read_text().split()[0])),
        "driver": driver(),
        **gpus(),
        "units": units(wanted["units"]),
        "canary": canary(endpoint) if endpoint else None,
        "ray_nodes": ray_nodes() if endpoint and endpoint["ray"] else None,
    }
    json.dump(facts, sys.stdout)


main()
