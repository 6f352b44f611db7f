"""What ties the versions of a stack to each other. Each rule is a function of the versions, and knows nothing of files.

A rule yields what breaks it (`Broken`): that set cannot work. What works, and should be known, is a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from provision.stack.releases import (
    FIRST_DRIVER,
    RAY_MINIMUM,
    RAY_PYTHON,
    RELEASES,
    VLLM_PYTHON,
    driver_cuda,
    major,
    nccl_parts,
    number,
    wheel_cuda,
)

Versions = Mapping[str, str]  # by the lock file's keys; all of them exact, optional ones may be missing


@dataclass(frozen=True)
class Broken:
    """A set that cannot work: which key of the lock file to look at, what is and was expected, and what to do."""

    key: str
    message: str
    hint: str


Rule = Callable[[Versions], Iterator[Broken]]


def driver_runs_the_wheel(versions: Versions) -> Iterator[Broken]:
    """The wheel of vLLM brings CUDA along, but not the driver that this needs."""
    driver, cuda = versions["driver"], wheel_cuda(versions["vllm"]) or "13.0"
    first = FIRST_DRIVER.get(major(cuda))
    if first and number(driver) < number(first):
        yield Broken(
            "driver",
            f"stack.driver is {driver}; the wheel of vLLM {versions['vllm']} is built for CUDA {cuda}, which needs at "
            f"least {first}.",
            f"Set driver to {first} or later; 580.126.20 is what this project ships.",
        )


def python_runs_vllm(versions: Versions) -> Iterator[Broken]:
    """What vLLM itself asks for (Requires-Python)."""
    yield from _python_within(versions, "vLLM", versions["vllm"], VLLM_PYTHON)


def python_runs_ray(versions: Versions) -> Iterator[Broken]:
    """Ray is compiled for each Python; there is no wheel for others."""
    yield from _python_within(versions, "Ray", versions["ray"], RAY_PYTHON.get(versions["ray"]))


def _python_within(versions: Versions, name: str, version: str, within: tuple[str, str] | None) -> Iterator[Broken]:
    python = versions.get("python")
    if python and within and not number(within[0]) <= number(python)[:2] < number(within[1]):
        yield Broken(
            "python",
            f"stack.python is {python}; {name} {version} runs on Python {within[0]} up to, not including, {within[1]}.",
            "Set python to 3.12, or leave it out: the newest that fits and is there is taken.",
        )


def ray_carries_vllm(versions: Versions) -> Iterator[Broken]:
    """Ray starts and carries the workers of vLLM, which asked for this release as long as it depended on Ray."""
    if number(versions["ray"]) < number(RAY_MINIMUM):
        yield Broken(
            "ray",
            f"stack.ray is {versions['ray']}; vLLM {versions['vllm']} needs at least {RAY_MINIMUM}.",
            "Set ray to 2.60.0, which was run with vLLM 0.32.0.",
        )


def driver_runs_the_toolkit(versions: Versions) -> Iterator[Broken]:
    """What the toolkit's compiler makes needs a driver of the same major version of CUDA, or later."""
    toolkit, driver = versions.get("cuda_toolkit"), versions["driver"]
    first = FIRST_DRIVER.get(major(toolkit)) if toolkit else None
    if toolkit and first and number(driver) < number(first):
        yield Broken(
            "cuda_toolkit",
            f"stack.cuda_toolkit is {toolkit}, and programs built with it need at least driver {first}; "
            f"stack.driver is {driver}.",
            f"Set driver to {first} or later, or cuda_toolkit to a release of the driver's CUDA.",
        )


def toolkit_fits_the_wheel(versions: Versions) -> Iterator[Broken]:
    """PyTorch refuses to compile kernels with a compiler of another major version than it was built with."""
    toolkit, cuda = versions.get("cuda_toolkit"), wheel_cuda(versions["vllm"])
    if toolkit and cuda and major(toolkit) != major(cuda):
        yield Broken(
            "cuda_toolkit",
            f"stack.cuda_toolkit is {toolkit}; the wheel of vLLM {versions['vllm']} is built for CUDA {cuda}, and "
            "PyTorch refuses to compile kernels with another major version.",
            f"Set cuda_toolkit to a release of CUDA {cuda}, such as {cuda}.2, or leave it out.",
        )


def driver_runs_nccl(versions: Versions) -> Iterator[Broken]:
    """The package of NCCL has the CUDA runtime in it that it was built for."""
    nccl, driver = versions.get("nccl"), versions["driver"]
    cuda = nccl_parts(nccl)[1] if nccl else ""
    first = FIRST_DRIVER.get(major(cuda)) if cuda else None
    if first and number(driver) < number(first):
        yield Broken(
            "nccl",
            f"stack.nccl is {nccl}, built for CUDA {cuda}, which needs at least driver {first}; "
            f"stack.driver is {driver}.",
            "Set nccl to a build for the driver's CUDA (the part after +cuda), or driver to a later one.",
        )


def nccl_fits_the_toolkit(versions: Versions) -> Iterator[Broken]:
    """nccl-tests are compiled with the toolkit and linked with NCCL: both must be of one major version of CUDA."""
    nccl, toolkit = versions.get("nccl"), versions.get("cuda_toolkit")
    cuda = nccl_parts(nccl)[1] if nccl else ""
    if cuda and toolkit and major(cuda) != major(toolkit):
        yield Broken(
            "nccl",
            f"stack.nccl is {nccl}, built for CUDA {cuda}; stack.cuda_toolkit is {toolkit}, and what is built on the "
            "host is compiled with the one and linked with the other.",
            f"Set nccl to a build that ends with +cuda{major(toolkit)}.N.",
        )


RULES: tuple[Rule, ...] = (
    driver_runs_the_wheel,
    python_runs_vllm,
    python_runs_ray,
    ray_carries_vllm,
    driver_runs_the_toolkit,
    toolkit_fits_the_wheel,
    driver_runs_nccl,
    nccl_fits_the_toolkit,
)


def broken(versions: Versions) -> list[Broken]:
    """Every rule that a set of versions breaks."""
    return [found for rule in RULES for found in rule(versions)]


def notes(versions: Versions) -> list[str]:
    """What works, and should be known: as sentences."""
    return [*_unknown_release(versions), *_two_nccls(versions), *_newer_than_the_driver(versions)]


def _unknown_release(versions: Versions) -> Iterator[str]:
    if versions["vllm"] not in RELEASES:
        yield (
            f"What the wheel of vLLM {versions['vllm']} brings along is not known here; its CUDA is taken to be "
            f"{wheel_cuda(versions['vllm']) or 'unknown'}."
        )


def _two_nccls(versions: Versions) -> Iterator[str]:
    nccl, release = versions.get("nccl"), RELEASES.get(versions["vllm"])
    if nccl and release and nccl_parts(nccl)[0] != release.nccl:
        yield (
            f"nccl-tests measure NCCL {nccl_parts(nccl)[0]} of the system, while vLLM talks by the {release.nccl} of "
            "its wheels: the same network, not the same program."
        )


def _newer_than_the_driver(versions: Versions) -> Iterator[str]:
    own = driver_cuda(versions["driver"])
    nccl, toolkit = versions.get("nccl"), versions.get("cuda_toolkit")
    built = {f"NCCL {nccl}": nccl_parts(nccl)[1]} if nccl else {}
    built |= {f"CUDA toolkit {toolkit}": toolkit} if toolkit else {}
    for name, cuda in built.items():
        if own and number(cuda)[:2] > number(own):
            yield (
                f"{name} is newer than the CUDA {own} of driver {versions['driver']}. Code that is compiled for the "
                "card runs; what the driver would have to compile (PTX) does not."
            )
