#!/usr/bin/python
"""Ansible module: on which NUMA nodes the GPUs of a service sit, and whether it is to be bound to one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ansible.module_utils import provision_pci as pci
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import converge

DOCUMENTATION = r"""
module: gpu_numa
short_description: Tells the NUMA nodes of the GPUs that a service drives
description:
  - Reads from sysfs on which node each NVIDIA GPU sits, in the order of their PCI addresses, as CUDA and nvidia-smi
    count alike cards.
  - A process that drives GPUs of one node of several is best bound to it. One that drives GPUs of more nodes is not to
    be bound at all, since it would be far from some of them; then each worker must be bound by itself.
options:
  count:
    description: How many of the GPUs the service drives, from the first.
    type: int
    required: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: See where the GPUs sit
  gpu_numa:
    count: 8
  register: where
"""

RETURN = r"""
nodes:
  description: The node of each GPU that the service drives; empty where the host does not say, or has one node.
  returned: always
  type: list
  elements: int
  sample: [0, 0, 0, 0, 1, 1, 1, 1]
bind:
  description: The node to bind the service to, as a word; empty for none.
  returned: always
  type: str
  sample: ""
reason:
  description: Why it is bound, or is not, as a sentence.
  returned: always
  type: str
  sample: Its GPUs sit on the NUMA nodes 0 and 1, so one node for all would be far from some of them.
"""

ONLINE = Path("/sys/devices/system/node/online")


def read(path: Path) -> str:
    """A file of sysfs; empty where there is none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def gpu_nodes() -> list[int]:
    """The node of each GPU by PCI address; -1 where the firmware does not say."""
    return [int(pci.word(address, "numa_node") or -1) for address in pci.gpus()]


def online_nodes() -> set[int]:
    """The nodes that the kernel has, of a list such as 0-1,4."""
    found = set()
    for part in re.findall(r"\d+(?:-\d+)?", read(ONLINE)):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def judge(count: int) -> dict[str, Any]:
    """What a service that drives so many GPUs is to be bound to, and why."""
    nodes, online = gpu_nodes()[:count], online_nodes()
    if len(online) < 2:
        return {"nodes": [], "bind": "", "reason": "This host has one NUMA node."}
    if not nodes or not set(nodes) <= online:
        return {"nodes": [], "bind": "", "reason": "This host does not say on which NUMA nodes its GPUs sit."}
    names = sorted(set(nodes))
    if len(names) == 1:
        reason = f"All GPUs that it drives sit on NUMA node {names[0]}."
        return {"nodes": nodes, "bind": str(names[0]), "reason": reason}
    listed = " and ".join(map(str, names))
    reason = f"Its GPUs sit on the NUMA nodes {listed}, so one node for all would be far from some of them."
    return {"nodes": nodes, "bind": "", "reason": reason}


def main() -> None:
    module = AnsibleModule(argument_spec={"count": {"type": "int", "required": True}}, supports_check_mode=True)
    converge(module, tuple, lambda: judge(module.params["count"]))


if __name__ == "__main__":
    main()
