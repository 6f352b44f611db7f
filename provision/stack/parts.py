"""A stack, told: each version of a deployment, where it is decided, and what ties it to the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from provision.stack.lock import Lock
from provision.stack.releases import (
    FIRST_DRIVER,
    RAY_MINIMUM,
    RELEASES,
    VLLM_PYTHON,
    driver_cuda,
    major,
    nccl_parts,
    wheel_cuda,
)


@dataclass(frozen=True)
class Part:
    """One version. `source`: `lock` (this file's line), `follows` another, `bundled` in vLLM's wheels, or `host`."""

    name: str
    version: str | None
    source: str
    reason: str
    line: int | None = None


def parts(lock: Lock) -> list[Part]:
    """Every version of a sound lock file and what follows from it, from the hardware up."""
    return [*_driver(lock), *_host(lock), *_serving(lock)]


def _driver(lock: Lock) -> Iterator[Part]:
    driver, vllm = lock.versions["driver"], lock.versions["vllm"]
    cuda = wheel_cuda(vllm) or "13.0"
    yield _locked(
        lock,
        "driver",
        f"has CUDA {driver_cuda(driver) or 'unknown'}; the wheel of vLLM {vllm}, built for CUDA {cuda}, needs at least "
        f"{FIRST_DRIVER.get(major(cuda), 'an unknown one')}",
    )
    yield Part(
        "fabric manager",
        driver,
        "follows",
        "where GPUs are joined by NVSwitches; refuses to run with another driver, and CUDA then fails with error 802",
    )
    yield Part("NSCQ", driver, "follows", "as Fabric Manager; reads the NVSwitches through the driver")
    yield Part(
        "kernel",
        None,
        "host",
        "the driver's module is built for the one that runs; equal on all hosts of a replica (--hosts compares)",
    )


def _host(lock: Lock) -> Iterator[Part]:
    toolkit, nccl = lock.versions.get("cuda_toolkit"), lock.versions.get("nccl")
    if toolkit:
        yield _locked(
            lock,
            "cuda_toolkit",
            "compiles on the host; installed where the inventory says cuda_toolkit: true",
            "CUDA toolkit",
        )
    if nccl:
        cuda = nccl_parts(nccl)[1]
        yield _locked(
            lock,
            "nccl",
            f"built for CUDA {cuda}; for nccl-tests, not vLLM; installed where the inventory says cuda_nccl: true",
            "NCCL (system)",
        )


def _serving(lock: Lock) -> Iterator[Part]:
    vllm, release = lock.versions["vllm"], RELEASES.get(lock.versions["vllm"])
    yield _locked(lock, "vllm", "pins PyTorch, and with it CUDA and NCCL", "vLLM")
    if release:
        yield Part("PyTorch", release.torch, "bundled", f"vLLM {vllm} is compiled for exactly this one")
        yield Part("CUDA runtime", release.cuda, "bundled", "comes as wheels with PyTorch; the host needs no toolkit")
        yield Part(
            "NCCL (vLLM)",
            release.nccl,
            "bundled",
            f"comes as a wheel with PyTorch {release.torch}; all hosts of a replica must have the same",
        )
    yield _locked(
        lock,
        "ray",
        f"carries vLLM's workers, at least {RAY_MINIMUM}; equal on all hosts of a replica, to the patch",
        "Ray",
    )
    python = lock.versions.get("python")
    within = f"vLLM runs on {VLLM_PYTHON[0]} up to, not including, {VLLM_PYTHON[1]}"
    if python:
        yield _locked(lock, "python", f"{within}; equal on all hosts of a replica", "Python")
    else:
        yield Part("Python", None, "host", f"{within}; the host's own where it fits, else uv fetches one")
    yield _locked(lock, "uv", "resolves and builds the environments, so all hosts resolve alike")
    yield _locked(lock, "huggingface_hub", "fetches and verifies the weights (hf)")


def _locked(lock: Lock, key: str, reason: str, name: str = "") -> Part:
    return Part(name or key, lock.versions[key], "lock", reason, lock.lines.get(key))
