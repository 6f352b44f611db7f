"""What a host is and does now, beside what its receipts say: who is at work there, what it serves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils import provision_host

SERVING = ("vllm.service", "ray-worker.service")
METRICS_S = 3


def state(receipts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The host's part of the answer."""
    release = _os_release()
    is_serving = _is_serving()
    return {
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        "os": release.get("PRETTY_NAME", ""),
        "os_id": release.get("ID", ""),
        "os_release": release.get("VERSION_ID", ""),
        "busy": provision_host.lock_holder(),
        "at_work": provision_host.at_work(),
        "serving": is_serving,
        "kv_tokens": kv_tokens(receipts) if is_serving else None,
    }


def _os_release() -> dict[str, str]:
    text = provision_host.read_text("/etc/os-release") or ""
    return {name: value.strip("\"'") for name, _, value in (line.partition("=") for line in text.splitlines())}


def _is_serving() -> bool:
    """Whether one of the units runs that a replica consists of; `is-active` fails only if none does."""
    return bool(provision_host.run(["systemctl", "is-active", "--quiet", *SERVING], check=False).rc == 0)


def kv_tokens(receipts: Iterable[Mapping[str, Any]]) -> int | None:
    """How many tokens' keys and values the engine that answers on this host has room for, by its own metrics."""
    steps = (step for receipt in receipts for step in receipt["steps"] if step["module"] == "vllm_canary")
    url = next((str(step["params"]["url"]) for step in steps), "")
    if not url:
        return None
    import urllib.request  # noqa: PLC0415 - costs more than most of what else is done, and most hosts answer no one

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url + "/metrics", timeout=METRICS_S) as answer:
            return kv_tokens_in(answer.read().decode("utf-8", "replace"))
    except (OSError, ValueError):
        return None


def kv_tokens_in(metrics: str) -> int | None:
    """The sum over the engines that the metrics name: blocks times the tokens of a block."""
    total = 0
    for labels in re.findall(r"^vllm:cache_config_info\{(.*)\}", metrics, re.MULTILINE):
        said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if said.get("num_gpu_blocks", "").isdigit() and said.get("block_size", "").isdigit():
            total += int(said["num_gpu_blocks"]) * int(said["block_size"])
    return total or None
