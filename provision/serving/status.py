"""What every host and replica of a fleet is doing now: one SSH round trip a host, all hosts at once."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from provision.inventory import Fleet, Host, Replica
from provision.serving.endpoint import Endpoint
from provision.ssh.connect import connection
from provision.ssh.trouble import explain, misconfigured

AT_ONCE = 64
ANSWER_TIMEOUT_S = 90
DRIVER_UNITS = ("nvidia-persistenced.service", "nvidia-fabricmanager.service")
HEAD_UNITS = ("ray-head.service", "vllm.service")
WORKER_UNITS = ("ray-worker.service",)
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
        wanted = HEAD_UNITS if self.host == self.replica.head else WORKER_UNITS
        if len(self.replica.hosts) == 1:
            wanted = ("vllm.service",)
        units = {name: unit["active"] for name, unit in self.facts["units"].items()}
        found = [
            f"{self.host.name}: {name} is {units.get(name, 'not installed')}."
            for name in wanted
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
            found.append(f"{self.endpoint.url} does not generate: {self.canary['error']}.")
        if self.ray_nodes is not None and self.ray_nodes != len(self.hosts):
            found.append(f"{self.replica.name}: {self.ray_nodes} of {len(self.hosts)} hosts are in its Ray cluster.")
        return found


def endpoint_of(replica: Replica) -> Endpoint:
    """Where a replica answers, from the inventory alone."""
    head = replica.head
    key = head.setting("vllm_api_key")
    url = f"http://{head.setting('vllm_host')}:{head.setting('vllm_port')}"
    return Endpoint(url, str(head.setting("vllm_served_model_name")), str(key) if key else None)


def survey(fleet: Fleet) -> list[ReplicaStatus]:
    """Ask every serving host at once; a host that does not answer costs some 10 seconds, and is told as such."""
    asked = [(replica, host) for replica in fleet.replicas for host in replica.hosts]
    with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(asked))) as pool:
        told = list(pool.map(lambda pair: _ask(*pair), asked))
    return [_replica(replica, [status for status in told if status.replica == replica]) for replica in fleet.replicas]


def _replica(replica: Replica, hosts: Sequence[HostStatus]) -> ReplicaStatus:
    head = hosts[0].facts
    return ReplicaStatus(replica, endpoint_of(replica), tuple(hosts), head.get("canary"), head.get("ray_nodes"))


def _ask(replica: Replica, host: Host) -> HostStatus:
    """Run the probe on one host."""
    argument = json.dumps({"units": [*DRIVER_UNITS, *HEAD_UNITS, *WORKER_UNITS], "endpoint": _canary(replica, host)})
    source = (files("provision.serving") / "probe.py").read_text(encoding="utf-8")
    command = f"sudo -n python3 - {shlex.quote(argument)}"
    try:
        link = connection(host)
    except Exception as error:  # noqa: BLE001  a word in the user's ssh_config, or a port that is none
        return HostStatus(host, replica, {}, misconfigured(host, error).message)
    try:
        with link:
            done = link.run(command, hide=True, warn=True, timeout=ANSWER_TIMEOUT_S, in_stream=io.StringIO(source))
    except Exception as error:  # noqa: BLE001  whatever it is, it concerns this host alone and is put into words
        return HostStatus(host, replica, {}, explain(host, error, link).message)
    if not done.ok:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        return HostStatus(host, replica, {}, f"the probe ended with {done.exited}: {' '.join(last)}")
    return HostStatus(host, replica, json.loads(done.stdout))


def _canary(replica: Replica, host: Host) -> dict[str, Any] | None:
    """What the probe needs to try the API; only the head has one, and the key stays on the host."""
    if host != replica.head:
        return None
    at = endpoint_of(replica)
    cluster = len(replica.hosts) > 1
    return {"url": at.url, "model": at.model, "key_file": API_KEY_FILE if at.api_key else None, "ray": cluster}
