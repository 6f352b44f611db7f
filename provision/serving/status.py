"""What every host and replica of a fleet is doing now: one SSH round trip a host, all hosts at once."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from provision.inventory import Fleet, Host, Replica
from provision.serving.endpoint import Endpoint, endpoint_of
from provision.ssh import Answer, Call, call
from provision.ssh.fit import python_of

ANSWER_TIMEOUT_S = 90
DRIVER_UNITS = ("nvidia-persistenced.service", "nvidia-fabricmanager.service")
ALL_UNITS = (
    *DRIVER_UNITS,
    "ray-head.service",
    "ray-worker.service",
    "vllm.service",
    "provision-health.service",
    "provision-follow.service",
)
API_KEY_FILE = "/etc/provision/secrets/vllm.env"


@dataclass(frozen=True)
class HostStatus:
    """One host: what the probe found there, or why it could not be asked."""

    host: Host
    replica: Replica
    facts: dict[str, Any]
    error: str | None = None

    @property
    def problems(self) -> list[str]:
        """What is wrong on this host, as sentences; empty when nothing is."""
        if self.error:
            return [f"{self.host.name} cannot be asked: {self.error}"]
        units = {name: unit["active"] for name, unit in self.facts["units"].items()}
        found = [
            f"{self.host.name}: {name} is {units.get(name, 'not installed')}."
            for name in _wanted(self.replica, self.host)
            if units.get(name) != "active"
        ]
        if self.facts["gpu_error"]:
            found.append(f"{self.host.name}: nvidia-smi says: {self.facts['gpu_error']}")
        return found


@dataclass(frozen=True)
class ReplicaStatus:
    """One replica: where it answers, and whether it just did. `canary` is None if the head told nothing."""

    replica: Replica
    endpoint: Endpoint
    hosts: tuple[HostStatus, ...]
    canary: dict[str, Any] | None
    ray_nodes: int | None

    @property
    def healthy(self) -> bool:
        """Whether it generated a token just now, and nothing is wrong on any of its hosts."""
        return not self.problems

    @property
    def problems(self) -> list[str]:
        """What is wrong, as sentences."""
        found = [problem for host in self.hosts for problem in host.problems]
        if self.canary and not self.canary["ok"]:
            said = f" vLLM said last: {self.canary['said'][:200]}" if self.canary.get("said") else ""
            found.append(f"{self.endpoint.url} does not generate: {self.canary['error']}.{said}")
        if self.ray_nodes is not None and self.ray_nodes != len(self.hosts):
            found.append(f"{self.replica.name}: {self.ray_nodes} of {len(self.hosts)} hosts are in its Ray cluster.")
        return found


def survey(fleet: Fleet) -> list[ReplicaStatus]:
    """Ask every serving host at once; a host that does not answer costs some 10 seconds, and is told as such."""
    source = (files("provision.serving") / "probe.py").read_text(encoding="utf-8")
    calls = [Call(host, _script(replica, host), source) for replica in fleet.replicas for host in replica.hosts]
    answers = {answer.host.name: answer for answer in call(calls, timeout=ANSWER_TIMEOUT_S)}
    return [
        _replica(replica, [_status(replica, answers[host.name]) for host in replica.hosts])
        for replica in fleet.replicas
    ]


def _replica(replica: Replica, hosts: Sequence[HostStatus]) -> ReplicaStatus:
    head = hosts[0].facts
    return ReplicaStatus(replica, endpoint_of(replica), tuple(hosts), head.get("canary"), head.get("ray_nodes"))


def _has_cluster(replica: Replica) -> bool:
    """Whether Ray joins several hosts there."""
    return replica.joined_by_ray and len(replica.hosts) > 1


def _wanted(replica: Replica, host: Host) -> list[str]:
    """The units without which a replica is not whole."""
    ray = _has_cluster(replica)
    if host != replica.head:
        return ["ray-worker.service"] if ray else ["vllm.service", "provision-follow.service"]
    tells = str(host.setting("vllm_health_port")) != "0"
    return [*["ray-head.service"] * ray, "vllm.service", *["provision-health.service"] * tells]


def _script(replica: Replica, host: Host) -> str:
    """What root's shell runs on a host: the probe, which comes on its standard input."""
    argument = json.dumps({"units": ALL_UNITS, "endpoint": _canary(replica, host)})
    return f"exec {shlex.quote(python_of(host))} - {shlex.quote(argument)}"


def _status(replica: Replica, answer: Answer) -> HostStatus:
    if answer.trouble:
        return HostStatus(answer.host, replica, {}, answer.trouble.message)
    try:
        return HostStatus(answer.host, replica, json.loads(answer.text))
    except ValueError:
        return HostStatus(answer.host, replica, {}, f"the probe ended with {answer.code}: {answer.error}")


def _canary(replica: Replica, host: Host) -> dict[str, Any] | None:
    """What the probe needs to try the API; only the head has one, and the key stays on the host."""
    if host != replica.head:
        return None
    at = endpoint_of(replica)
    key_file = API_KEY_FILE if at.api_key else None
    return {"url": at.url, "model": at.model, "key_file": key_file, "ray": _has_cluster(replica)}
