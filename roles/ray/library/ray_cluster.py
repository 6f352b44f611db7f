#!/usr/bin/python
"""Ansible module: waits until the hosts of a replica are in one Ray cluster, or says who is missing."""

from __future__ import annotations

import json
import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import run

DOCUMENTATION = r"""
module: ray_cluster
short_description: Waits until every host of a replica is in its Ray cluster
description:
  - Runs on the head. Changes nothing; fails when a host has not joined in time, or offers another number of GPUs.
options:
  command:
    description: Program that prints the cluster's nodes as JSON.
    type: path
    required: true
  members:
    description: For each address, C(host) (its name in the inventory) and C(gpus) (what it must offer).
    type: dict
    required: true
  tolerated:
    description: Addresses of other hosts that may be in it for now, since a run will take them out.
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds until all must have joined.
    type: int
    default: 180
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Wait until every host of the replica has joined, and no other
  ray_cluster:
    command: /opt/provision/bin/ray-nodes
    members:
      10.1.4.72: {host: h800-01, gpus: 8}
      10.1.4.74: {host: h800-02, gpus: 8}
"""

RETURN = r"""
nodes:
  description: The nodes of the cluster by address.
  returned: success
  type: dict
  sample: {10.1.4.72: {alive: true, gpus: 8, head: true}}
"""

PAUSE_S = 1.0


def troubles(members: dict[str, Any], tolerated: list[str], nodes: dict[str, Any]) -> list[str]:
    """What keeps the cluster from being whole, and itself, one sentence for each host."""
    strangers = [address for address, node in nodes.items() if node["alive"] and address not in {*members, *tolerated}]
    found = [
        f"{address} is in it, which the inventory no longer has: the engine could be placed there. On that host: "
        "systemctl disable --now ray-worker"
        for address in strangers
    ]
    for address, member in members.items():
        name, node = f"{member['host']} ({address})", nodes.get(address)
        if node is None or not node["alive"]:
            found.append(
                f"{name} is not in it. On {member['host']}: journalctl -u ray-worker; and does it reach this host?"
            )
        elif node["gpus"] != int(member["gpus"]):
            found.append(f"{name} offers {node['gpus']} GPUs, where {member['gpus']} were expected (ray_num_gpus).")
    return found


def look(command: str, members: dict[str, Any], tolerated: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The nodes as they are now, and what is wrong with them."""
    done = run([command], check=False, timeout_s=60)
    if done.rc != 0:
        last = (done.err.strip().splitlines() or ["no answer"])[-1]
        return {}, [f"Its head does not answer: {last}. On this host: journalctl -u ray-head"]
    nodes = json.loads(done.out.splitlines()[-1])
    return nodes, troubles(members, tolerated, nodes)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "command": {"type": "path", "required": True},
            "members": {"type": "dict", "required": True},
            "tolerated": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 180},
        },
        supports_check_mode=True,
    )
    asked = [module.params[name] for name in ("command", "members", "tolerated")]
    deadline = time.monotonic() + module.params["timeout"]
    nodes, wrong = look(*asked)
    while wrong and time.monotonic() < deadline:
        time.sleep(PAUSE_S)
        nodes, wrong = look(*asked)
    if wrong:
        waited = f"The Ray cluster of this replica is not whole after {module.params['timeout']} s (ray_join_timeout). "
        module.fail_json(msg=waited + " ".join(wrong))
    module.exit_json(changed=False, nodes=nodes)


if __name__ == "__main__":
    main()
