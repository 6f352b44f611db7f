"""What must hold between the hosts of a replica, beyond each variable by itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from provision.content import hardware_profiles, nccl_objection
from provision.errors import Problem
from provision.inventory.ansible_api import RawInventory
from provision.inventory.lines import LineIndex, Place
from provision.inventory.model import Fleet, Host, Replica
from provision.inventory.schema import nearest
from provision.stack import vllm_arguments

TENSOR, PIPELINE, DATA = "vllm_tensor_parallel_size", "vllm_pipeline_parallel_size", "vllm_data_parallel_size"
TIMES = "\N{MULTIPLICATION SIGN}"
ENDPOINT = ("vllm_host", "vllm_port", "vllm_served_model_name", "vllm_api_key")
# Of these, hosts of one replica must have the same: they are versions.
VERSIONS = (
    "driver_version",
    "cuda_toolkit_version",
    "cuda_nccl_version",
    "serving_env_requirements",
    "serving_env_extra_requirements",
    "serving_env_python",
)
ENVIRONMENTS, OF_THE_NETWORK = ("rdma_env", "ray_env", "vllm_env"), ("NCCL_", "GLOO_", "UCX_")
GATEWAY = ("gateway_drain_timeout", "gateway_port", "vllm_health_port", "vllm_start_timeout")
# Arguments of vLLM from which other things follow, and the variables that say them for all of these.
SAID_ELSEWHERE = {
    "model": "weights_repo",
    "host": "vllm_host",
    "port": "vllm_port",
    "api-key": "vllm_api_key",
    "tensor-parallel-size": TENSOR,
    "pipeline-parallel-size": PIPELINE,
    "data-parallel-size": DATA,
    "distributed-executor-backend": "vllm_executor",
}
TLS = "the gateway ends TLS (gateway_tls_certificate), and asks vLLM without"
IMPOSSIBLE = {
    "uds": "the gateway and the checks ask vLLM at vllm_port",
    "config": "its file is what provision writes",
    "headless": "provision says so where it is so",
    **dict.fromkeys(("ssl-keyfile", "ssl-certfile", "ssl-ca-certs", "ssl-cert-reqs"), TLS),
}
PORTS = ("fabric_port", "ray_ports", "vllm_ports")
DEFAULTS_ASKED = (TENSOR, PIPELINE, DATA, "ray_num_gpus", "serving_env_build", *ENDPOINT, *GATEWAY, *PORTS)


def check_replicas(fleet: Fleet, raw: RawInventory, index: LineIndex) -> list[Problem]:
    """Every contradiction between the hosts, sizes and arguments of the replicas."""
    return list(_Checks(fleet, raw, index).problems())


class _Checks:
    def __init__(self, fleet: Fleet, raw: RawInventory, index: LineIndex) -> None:
        self.fleet, self.raw, self.index = fleet, raw, index
        self.profiles: dict[str, Any] = dict(hardware_profiles())

    def problems(self) -> Iterator[Problem]:
        yield from self.membership()
        if self.fleet.gateways and self.fleet.replicas:
            yield from self.gateway()
        for replica in self.fleet.replicas:
            yield from self.mixed(replica)
            yield from self.skewed(replica)
            yield from self.sizes(replica)
            yield from self.addresses(replica)
            yield from self.ports(replica)
        for host in self.fleet.serving:
            yield from self.arguments(host)
            for variable in ENVIRONMENTS:
                yield from self.environment(host, variable)

    def membership(self) -> Iterator[Problem]:
        for name in self.raw.groups.get("serving", ()):
            replicas = [replica.name for replica in self.fleet.replicas if name in [h.name for h in replica.hosts]]
            if not replicas:
                yield self.at_group(
                    "serving",
                    f"{name} stands directly under serving; each child group of serving is one replica.",
                    f"Put it into a child group:  serving: {{children: {{a: {{hosts: {{{name}: }}}}}}}}",
                )
            elif len(replicas) > 1:
                message = f"{name} is in the replicas {' and '.join(replicas)}; a host serves in one."
                yield self.at_group(replicas[-1], message)

    def mixed(self, replica: Replica) -> Iterator[Problem]:
        profiles = {host.name: str(host.variables.get("hardware_profile")) for host in replica.hosts}
        if len(set(profiles.values())) > 1:
            said = ", ".join(f"{host} {profile}" for host, profile in profiles.items())
            odd = next(host for host in replica.hosts if profiles[host.name] != profiles[replica.head.name])
            message = f"{replica.name}: the hosts of a replica must be of one hardware_profile, but they are {said}."
            yield self.at(odd, "hardware_profile", message)

    def skewed(self, replica: Replica) -> Iterator[Problem]:
        for name in VERSIONS:
            values = {host.name: host.variables.get(name) for host in replica.hosts}
            first = values[replica.head.name]
            odd = next((host for host in replica.hosts if values[host.name] != first), None)
            if odd:
                said = ", ".join(f"{host} {'unset' if value is None else value}" for host, value in values.items())
                place = odd if name in odd.variables else replica.head
                yield self.at(
                    place,
                    name,
                    f"{replica.name}: the hosts of a replica must have one {name}, but they have {said}.",
                    f"Set it for all of {replica.name}, in group_vars/{replica.name}.yml or in stack.lock.yml.",
                )

    def gateway(self) -> Iterator[Problem]:
        """What one gateway can stand before: replicas that are alike, where it reaches them, on ports of their own."""
        heads = [replica.head for replica in self.fleet.replicas]
        for name in ("vllm_served_model_name", "vllm_api_key"):
            odd = next((head for head in heads if head.setting(name) != heads[0].setting(name)), None)
            if odd:
                message = (
                    f"{name} differs between {heads[0].name} and {odd.name}, whose replicas stand behind one gateway."
                )
                yield self.at(odd, name, message, "Set it once, in group_vars/serving.yml.")
        for head in heads:
            address = str(head.setting("vllm_host"))
            if address.startswith("127.") and [host.name for host in self.fleet.gateways] != [head.name]:
                message = f"{head.name}: vllm_host is {address}, where no gateway reaches it."
                yield self.at(head, "vllm_host", message, "Leave it out: the address for its peers is the default.")
        for host in self.fleet.gateways:
            yield from self.shared(host)

    def shared(self, host: Host) -> Iterator[Problem]:
        """The address that several gateways share."""
        given = host.variables.get("gateway_address")
        if not given:
            return
        try:
            ipaddress.ip_interface(str(given))
        except ValueError:
            hint = "Give an address with its prefix length, such as 10.1.4.9/24."
            yield self.at(host, "gateway_address", f"{host.name}: gateway_address is {given}.", hint)
        if not host.variables.get("gateway_interface"):
            message = f"{host.name}: gateway_address {given} is set, and gateway_interface is not."
            yield self.at(host, "gateway_address", message, "Name the interface on whose network the address is.")
        if len(self.fleet.gateways) == 1:
            message = f"{host.name} is the only gateway, so it shares gateway_address {given} with none."
            yield self.at(
                host, "gateway_address", message, "Add a host to the group gateway, or leave the variable out."
            )

    def ports(self, replica: Replica) -> Iterator[Problem]:
        """What listens on the head of a replica, each on ports of its own."""
        head, seen = replica.head, list[tuple[str, range]]()
        for name, ports in self.listeners(replica):
            other = next(((one, its) for one, its in seen if set(its) & set(ports)), None)
            seen.append((name, ports))
            if other:
                first, second = (variable.split(".")[0] for variable in (name, other[0]))
                said = f"{other[0]} ({_span(other[1])}) and {name} ({_span(ports)}) overlap"
                if other[1] == ports:
                    said = f"{other[0]} and {name} are both {ports[0]}"
                place = first if first in head.variables else second
                yield self.at(head, place, f"{head.name}: {said}.", "Give each its own.")

    def listeners(self, replica: Replica) -> Iterator[tuple[str, range]]:
        """The ports that are taken on a replica's head, each by the variable that says so."""
        head, spans = replica.head, len(replica.hosts) > 1
        executor = head.variables.get("vllm_executor") or ("ray" if (self.number(head, DATA) or 1) == 1 else "mp")
        names = ["vllm_port", "vllm_health_port", "fabric_port"]
        for name in [*names, *(["gateway_port"] if head in self.fleet.gateways else [])]:
            if port := self.number(head, name):
                yield name, range(port, port + 1)
        if not spans:
            return
        taken = "ray_ports" if executor == "ray" else "vllm_ports"
        ports = head.setting(taken)
        known = {name: port for name, port in ports.items() if isinstance(port, int)} if isinstance(ports, dict) else {}
        first, last = known.pop("workers_from", None), known.pop("workers_to", None)
        for name, port in known.items():
            yield f"{taken}.{name}", range(port, port + 1)
        if first and last:
            yield f"{taken}.workers_from to workers_to", range(first, last + 1)

    def sizes(self, replica: Replica) -> Iterator[Problem]:
        head = replica.head
        factors = {name: self.number(head, name) for name in (TENSOR, PIPELINE)}
        copies = self.number(head, DATA) or 1
        yield from self.copies(replica, copies)
        if copies > 1:
            factors[DATA] = copies
        gpus = [self.gpus(host) for host in replica.hosts]
        asked = [size for size in factors.values() if size is not None]
        if None in gpus or factors[TENSOR] is None or prod(asked) == sum(count for count in gpus if count):
            return
        product = f" {TIMES} ".join(f"{name} {size}" for name, size in factors.items() if size is not None)
        have = f"{len(gpus)} {TIMES} {gpus[0]}" if len(set(gpus)) == 1 else " + ".join(map(str, gpus))
        yield self.at(
            head,
            TENSOR if TENSOR in head.variables else PIPELINE,
            f"{replica.name}: {product} = {prod(asked)} GPUs, but its hosts have {have} = {sum(g or 0 for g in gpus)}.",
            "The product must equal the GPUs of the replica: set the sizes, or move hosts between the replicas.",
        )

    def copies(self, replica: Replica, count: int) -> Iterator[Problem]:
        """Copies of the model behind one API: equally many on each host, and started by vLLM itself."""
        head, hosts = replica.head, len(replica.hosts)
        if count > 1 and hosts > 1 and replica.joined_by_ray:
            message = f"{replica.name}: vllm_executor is ray, and {DATA} is {count} on {hosts} hosts."
            yield self.at(head, "vllm_executor", message, "Leave vllm_executor out: vLLM starts copies on other hosts.")
        if count % hosts and count > 1:
            message = f"{replica.name}: {DATA} is {count}, which its {hosts} hosts cannot share equally."
            yield self.at(head, DATA, message, f"Give a multiple of {hosts}; a copy spans no hosts.")

    def addresses(self, replica: Replica) -> Iterator[Problem]:
        for host in replica.hosts if len(replica.hosts) > 1 else ():
            if self.fleet.lab and "ansible_host" not in host.variables:
                continue  # a simulated host gets its address when the lab is up
            try:
                ipaddress.ip_address(host.ray_address)
            except ValueError:
                name = "ray_address" if "ray_address" in host.variables else "ansible_host"
                message = (
                    f"{host.name}: ray_address is {host.ray_address}; the hosts of {replica.name} find each other"
                    " by IP address, since Ray and NCCL bind to it."
                )
                yield self.at(host, name, message, f"Set ray_address in host_vars/{host.name}.yml, e.g. 10.1.4.72")

    def arguments(self, host: Host) -> Iterator[Problem]:
        given, version = host.variables.get("vllm_args"), self.fleet.stack.vllm
        known = vllm_arguments(version)
        place = self.index.of_host("vllm_args", host.name, host.groups)
        path = place.path if place else self.fleet.path
        for key in map(str, given) if isinstance(given, dict) else ():
            line = place.key(key).line if place else None
            if known is not None and key.split(".")[0] not in known:
                near = nearest(key.replace("_", "-"), known)
                hint = f"Did you mean {near}?" if near else f"What it takes: vllm serve --help=all, of vLLM {version}."
                yield Problem(f"vllm_args: vLLM {version} has no argument {key}.", path, line, hint)
            elif key in SAID_ELSEWHERE:
                message = f"vllm_args: what follows from {key} would go by {SAID_ELSEWHERE[key]} all the same."
                secret = "..." if key == "api-key" else given[key]  # type: ignore[index]
                yield Problem(message, path, line, f"Say {SAID_ELSEWHERE[key]}: {secret}")
            elif key in IMPOSSIBLE:
                yield Problem(f"vllm_args: {key} cannot be set: {IMPOSSIBLE[key]}.", path, line, "Leave it out.")

    def environment(self, host: Host, variable: str) -> Iterator[Problem]:
        given = host.variables.get(variable)
        place = self.index.of_host(variable, host.name, host.groups)
        for name in map(str, given) if isinstance(given, dict) else ():
            at = place.key(name) if place else None
            if variable != "rdma_env" and name.startswith(OF_THE_NETWORK):
                message = f"{variable}: {name} describes a host's network."
                yield _problem(at, self.fleet.path, message, "It belongs into rdma_env.")
            elif name.startswith("NCCL_") and (objection := nccl_objection(name)):
                said, _, hint = objection.partition(". ")
                yield _problem(at, self.fleet.path, f"{variable}: {said.rstrip('.')}.", hint or None)

    def gpus(self, host: Host) -> int | None:
        """The ranks that a host holds: as declared to Ray, one where GPUs do not compute, or its profile's GPUs."""
        if "ray_num_gpus" not in host.variables and host.setting("serving_env_build") == "cpu":
            return 1  # whatever the default says of the cards
        declared = self.number(host, "ray_num_gpus")
        if declared is not None:
            return declared
        profile = self.profiles.get(str(host.variables.get("hardware_profile")))
        return int(profile["gpus"]["count"]) if profile else None

    def number(self, host: Host, name: str) -> int | None:
        text = str(host.setting(name))
        return int(text) if text.isdigit() else None

    def at(self, host: Host, variable: str, message: str, hint: str | None = None) -> Problem:
        return _problem(self.index.of_host(variable, host.name, host.groups), self.fleet.path, message, hint)

    def at_group(self, group: str, message: str, hint: str | None = None) -> Problem:
        return _problem(self.index.of_group(group), self.fleet.path, message, hint)


def _problem(place: Place | None, inventory: Path, message: str, hint: str | None) -> Problem:
    return Problem(message, place.path if place else inventory, place.line if place else None, hint)


def _span(ports: range) -> str:
    """A port, or from which to which."""
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"
