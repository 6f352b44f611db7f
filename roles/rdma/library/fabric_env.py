#!/usr/bin/python
"""Ansible module: the environment by which NCCL, gloo and UCX find the network, made from what this host shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import Change, HostError, converge, file_change, read_text, sha256_text
from ansible.module_utils.provision_nccl import FOR_DEBUGGING, objection
from ansible.module_utils.provision_rdma import ETHERNET, Choice, choose, gid_index, interface_of, ports

DOCUMENTATION = r"""
module: fabric_env
short_description: Writes the environment by which NCCL, gloo and UCX find this host's network
description:
  - Reads the RDMA ports and where they sit, and the interface that has the host's address, and writes what follows as a
    file of variables, each with its reason. What the inventory sets is added, or overrules what was found.
  - A C(NCCL_) name that NCCL does not have is refused with the nearest one. NCCL itself would ignore it silently.
  - The state of a link changes nothing in the file, since NCCL passes over ports that are down. What changes with the
    hardware is named as drift, and takes a restart of what was started with the file as it was.
options:
  path:
    description: The file.
    type: path
    default: /etc/provision/fabric.env
  address:
    description: The address (or name) at which this host's peers find it.
    type: str
    required: true
  interface:
    description: The interface of that address; empty to look it up.
    type: str
    default: ""
  hosts:
    description: How many hosts form the replica. With several, NCCL must not fall back to TCP.
    type: int
    default: 1
  enabled:
    description: Whether RDMA is used where there is any.
    type: bool
    default: true
  devices:
    description: The only RDMA devices to use, as C(mlx5_0) or C(mlx5_0:1); empty to choose by where they sit.
    type: list
    elements: str
    default: []
  exclude:
    description: RDMA devices that are not for the GPUs.
    type: list
    elements: str
    default: []
  network:
    description: The IP network of the ports' addresses, where RoCE ports have several.
    type: str
    default: ""
  variables:
    description: Variables of the inventory; one without a value is left out of the file.
    type: dict
    default: {}
  elsewhere:
    description: The names that other variables of the inventory set, by its name, to refuse those that belong here.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Describe the network to NCCL
  fabric_env:
    address: 10.1.4.72
    hosts: 2
    exclude: [mlx5_8]
    variables: {NCCL_IB_TC: 106}
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
sha256:
  description: SHA-256 of the file wanted, by which units tell whether they run with it.
  returned: success
  type: str
interface:
  description: The interface that has the host's address.
  returned: success
  type: str
variables:
  description: What the file sets.
  returned: success
  type: dict
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Wrote /etc/provision/fabric.env.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry when the file differs.
  returned: always
  type: list
  elements: dict
"""

HEADER = "# Written by provision (role rdma) from what this host shows. rdma_env in the inventory adds and overrules.\n"
RECORDS = "/run/provision"  # where units note what they were started with
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OURS = ("NCCL_", "GLOO_", "UCX_")  # what describes the host's network, and nothing else


class Line(NamedTuple):
    """One variable, its value and why."""

    name: str
    value: str
    why: str


def refuse(wanted: dict[str, Any]) -> None:
    """Stop before anything is changed at names that nothing would read, or that stand in another place."""
    wrong = [objection(name) for name in wanted["variables"]]
    wrong += [f"{name!r} is no name of a variable." for name in wanted["variables"] if not NAME.fullmatch(name)]
    network = wanted["variables"].get("NCCL_NET")
    if network is not None and re.search("[:,]", str(network)):
        wrong.append(
            f"NCCL_NET is the name of one network, such as IB, not {network}; ports are chosen by rdma_devices."
        )
    for variable, names in wanted["elsewhere"].items():
        wrong += [f"{name} stands in {variable}; move it to rdma_env." for name in names if name.startswith(OURS)]
    if any(wrong):
        told = " ".join(sentence for sentence in wrong if sentence)
        raise HostError(f"{told} Nothing was changed; correct the inventory and run again.")


def socket_lines(interface: str, address: str) -> Iterator[Line]:
    """How the processes meet, before anything is fast."""
    where = f"{interface} has {address}, at which the peers of this host find it"
    yield Line("NCCL_SOCKET_IFNAME", f"={interface}", f"{where}; exactly this one, so that no other can be taken.")
    yield Line("GLOO_SOCKET_IFNAME", interface, f"{where}; gloo would take what the host's name leads to.")


def rdma_lines(used: Sequence[Choice], others: Sequence[Choice], several: bool) -> Iterator[Line]:
    """Which ports carry the traffic of the GPUs."""
    names = [choice.port.name for choice in used]
    kind = f"{'RoCE' if used[0].port.link_layer == ETHERNET else used[0].port.link_layer} ports"
    left = "".join(f"\n{choice.port.name} is left out: {choice.why}." for choice in others)
    reasons = "".join(f"\n{choice.port.name}: {choice.why}." for choice in used)
    yield Line("NCCL_IB_HCA", f"={','.join(names)}", f"The {kind} for the GPUs, exactly these.{reasons}{left}")
    yield Line("UCX_NET_DEVICES", ",".join(names), "The same ports, for what transfers by UCX (NIXL).")
    if several:
        why = "This replica spans hosts: without its ports NCCL shall say so, and not fall back to TCP in silence."
        yield Line("NCCL_NET", "IB", why)


def gid_lines(used: Sequence[Choice], network: str, several: bool) -> Iterator[Line]:
    """RoCE: which entry of the ports' tables is the IPv4 address for RoCE v2. Ports that are down may have none."""
    found = {choice.port: gid_index(choice.port, network) for choice in used if choice.port.link_layer == ETHERNET}
    without = [port.name for port, index in found.items() if index is None and port.is_up]
    if without and several:
        where = f" in {network} (rdma_network)" if network else ""
        raise HostError(
            f"{', '.join(without)} has no IPv4 address for RoCE v2{where}, so NCCL "
            "could not reach other hosts through it. Give its interface an IPv4 address (rdma link shows which "
            "interface it is), or leave the port out with rdma_exclude."
        )
    indexes = {index for index in found.values() if index is not None}
    if len(indexes) == 1:
        index, where = str(indexes.pop()), f"The ports' IPv4 address for RoCE v2{f' in {network}' if network else ''}"
        yield Line("NCCL_IB_GID_INDEX", index, f"{where} stands there in the table of each.")
        yield Line("UCX_IB_GID_INDEX", index, "The same entry.")
    elif indexes:
        told = ", ".join(f"{port.name} {index}" for port, index in found.items() if index is not None)
        why = f"The IPv4 addresses stand at different places in the ports' tables ({told}), so NCCL looks itself:"
        yield Line("NCCL_IB_ADDR_FAMILY", "AF_INET", f"{why} for IPv4,")
        yield Line("NCCL_IB_ROCE_VERSION_NUM", "2", "for RoCE v2, which routers pass on" + ("," if network else "."))
        if network:
            yield Line("NCCL_IB_ADDR_RANGE", network, "and in this network (rdma_network).")


def found_lines(wanted: dict[str, Any], interface: str) -> Iterator[Line]:
    """All that follows from what the host shows."""
    yield from socket_lines(interface, wanted["address"])
    choices = choose(ports(), wanted, interface) if wanted["enabled"] else []
    used, others = ([choice for choice in choices if choice.used is use] for use in (True, False))
    if used:
        several = wanted["hosts"] > 1
        yield from rdma_lines(used, others, several)
        yield from gid_lines(used, wanted["network"], several)
        return
    if not wanted["enabled"]:
        why = "rdma_enabled is false."
    elif others:
        why = "".join(f"{choice.port.name} is left out: {choice.why}. " for choice in others).strip()
    else:
        why = "This host has no RDMA port."
    yield Line("NCCL_IB_DISABLE", "1", f"{why} NCCL's traffic between hosts goes over TCP.")
    yield Line("UCX_NET_DEVICES", interface, "UCX's does, too.")


def merged(lines: Sequence[Line], variables: dict[str, Any]) -> list[Line]:
    """What was found, with what the inventory says of it, and what it adds."""
    kept = []
    for line in lines:
        if line.name not in variables:
            kept.append(line)
        elif variables[line.name] is not None:
            why = f"Set by the inventory (rdma_env); without it: {line.value}. {line.why}"
            kept.append(Line(line.name, text_of(variables[line.name]), why))
    found = {line.name for line in lines}
    added = {name: value for name, value in variables.items() if name not in found and value is not None}
    return kept + [
        Line(name, text_of(value), "Set by the inventory (rdma_env).") for name, value in sorted(added.items())
    ]


def text_of(value: Any) -> str:
    """YAML's true is 1 to those who read it here."""
    return str(int(value)) if isinstance(value, bool) else str(value)


def render(lines: Sequence[Line]) -> str:
    """As systemd reads it: one NAME="value" a line, each below its reason."""
    parts = []
    for line in lines:
        why = "".join(f"# {part}\n" for part in line.why.splitlines())
        parts.append(f"\n{why}{line.name}={json.dumps(line.value, ensure_ascii=False)}\n")
    return HEADER + "".join(parts)


def effect_of(path: str, sha256: str) -> str:
    """`restart` where a unit was started with other content: it will have to start again."""
    for record in Path(RECORDS).glob("*.consumed"):
        for line in (read_text(str(record)) or "").splitlines()[1:]:
            sha, _, name = line.partition("  ")
            if name == path and sha != sha256:
                return "restart"
    return "none"


def plan(wanted: dict[str, Any], made: dict[str, Any]) -> Iterator[Change]:
    """The file, where it differs; `made` receives what it is to be."""
    refuse(wanted)
    interface = wanted["interface"] or interface_of(wanted["address"])
    lines = merged(list(found_lines(wanted, interface)), wanted["variables"])
    text = render(lines)
    made.update(
        path=wanted["path"],
        sha256=sha256_text(text),
        interface=interface,
        variables={line.name: line.value for line in lines},
    )
    yield from file_change(wanted["path"], text, effect=effect_of(wanted["path"], made["sha256"]))


def main() -> None:
    names = {"type": "list", "elements": "str", "default": []}
    spec = {
        "path": {"type": "path", "default": "/etc/provision/fabric.env"},
        "address": {"type": "str", "required": True},
        "interface": {"type": "str", "default": ""},
        "hosts": {"type": "int", "default": 1},
        "enabled": {"type": "bool", "default": True},
        "devices": names,
        "exclude": names,
        "network": {"type": "str", "default": ""},
        "variables": {"type": "dict", "default": {}},
        "elsewhere": {"type": "dict", "default": {}},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    wanted, made = module.params, {}

    def facts() -> dict[str, Any]:
        for name in sorted(FOR_DEBUGGING & {name for name, value in wanted["variables"].items() if value is not None}):
            module.warn(f"{name} (rdma_env) is for debugging, as NCCL's guide says; take it out when that is done.")
        return made

    converge(module, lambda: plan(wanted, made), facts)


if __name__ == "__main__":
    main()
