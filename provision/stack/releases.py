"""What is known of releases: what vLLM's wheels bring along, which CUDA a driver has, which Python Ray is built for.

Where each line comes from is said beside it. *Resolved*: `uv pip compile` of the release for x86-64 and Python 3.12.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """What the CUDA wheel of one release of vLLM is tied to, and brings along."""

    torch: str
    cuda: str
    nccl: str


# Resolved. 0.33 by PyTorch's own pins, since its other requirements could not be resolved when this was written.
RELEASES = {
    "0.13.0": Release("2.9.0", "12.8", "2.27.5"),
    "0.20.0": Release("2.11.0", "13.0", "2.28.9"),
    "0.22.0": Release("2.11.0", "13.0", "2.28.9"),
    "0.24.0": Release("2.11.0", "13.0", "2.28.9"),
    "0.26.0": Release("2.11.0", "13.0", "2.28.9"),
    "0.27.0": Release("2.13.0", "13.0", "2.29.7"),
    "0.28.0": Release("2.13.0", "13.0", "2.29.7"),
    "0.29.0": Release("2.13.0", "13.0", "2.29.7"),
    "0.30.0": Release("2.13.0", "13.0", "2.29.7"),
    "0.31.0": Release("2.13.0", "13.0", "2.29.7"),
    "0.32.0": Release("2.13.0", "13.0", "2.29.7"),
    "0.33.0": Release("2.14.0", "13.0", "2.30.7"),
}
CUDA_13_SINCE = "0.20.0"  # releases that are not listed: PyPI's wheels of vLLM are built for CUDA 13.0 since then

# vLLM 0.32 and 0.33: Requires-Python. From the first on, up to and without the second.
VLLM_PYTHON = ("3.11", "3.15")
# Ray's wheels (cp310 to cp314 are on PyPI for 2.60.0).
RAY_PYTHON = {"2.60.0": ("3.10", "3.15")}
# vLLM asked for ray[cgraph]>=2.48.0 as long as it depended on Ray; 2.60.0 with 0.32.0 was run over two hosts.
RAY_MINIMUM = "2.48.0"

# NVIDIA's CUDA release notes, "minor version compatibility": the first driver that runs any CUDA of a major version.
FIRST_DRIVER = {12: "525.60.13", 13: "580.65.06"}
# The same notes, by driver branch: the CUDA that a driver has itself, and compiles (JIT) code for.
DRIVER_CUDA = {570: "12.8", 575: "12.9", 580: "13.0", 590: "13.1", 595: "13.2", 610: "13.3"}


def number(version: str) -> tuple[int, ...]:
    """A version as numbers, to compare: 580.65.06 is (580, 65, 6)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def major(version: str) -> int:
    """The first number of a version."""
    return number(version)[0]


def wheel_cuda(vllm: str) -> str | None:
    """The CUDA that vLLM's wheel is built for; None where that is not known."""
    known = RELEASES.get(vllm)
    if known:
        return known.cuda
    return "13.0" if number(vllm) >= number(CUDA_13_SINCE) else None


def driver_cuda(driver: str) -> str | None:
    """The CUDA that a driver has; None for a branch that is older than those known."""
    branches = [branch for branch in DRIVER_CUDA if branch <= major(driver)]
    return DRIVER_CUDA[max(branches)] if branches else None


def nccl_parts(package: str) -> tuple[str, str]:
    """The release of a package of NCCL, and the CUDA that it was built for: 2.28.9-1+cuda13.0."""
    release, _, cuda = package.partition("+cuda")
    return release.partition("-")[0], cuda
