#!/usr/bin/python
"""Ansible module: waits until the driver runs in the version wanted and its fabric is joined. It changes nothing."""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_apt import installed
from ansible.module_utils.provision_driver import LibraryMismatchError, loaded_version, query_gpus
from ansible.module_utils.provision_host import HostError
from ansible.module_utils.provision_receipt import record_step

DOCUMENTATION = r"""
module: nvidia_ready
short_description: Waits until GPUs can compute
description:
  - Checks that the loaded driver is the one wanted and that nvidia-smi answers. On hosts with NVSwitches it waits until
    Fabric Manager has joined every GPU to the fabric; until then CUDA fails with error 802.
options:
  version:
    description: The driver's version.
    type: str
    required: true
  fabric:
    description: Whether the GPUs are joined by NVSwitches.
    type: bool
    required: true
  gpus:
    description: How many GPUs nvidia-smi must show; 0 for any number but none.
    type: int
    default: 0
  timeout:
    description: Seconds to wait for the fabric.
    type: int
    default: 120
attributes:
  check_mode:
    support: full
    details: On a host that has no driver yet it has nothing to say.
  diff_mode:
    support: none
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Wait until the GPUs can compute
  nvidia_ready:
    version: 580.126.20
    fabric: true
    gpus: 8
"""

RETURN = r"""
loaded:
  description: The version of the kernel module that is loaded, empty for none.
  returned: always
  type: str
gpus:
  description: How many GPUs nvidia-smi shows.
  returned: always
  type: int
fabric:
  description: The state of the fabric of each GPU.
  returned: always
  type: list
  elements: str
"""

READY = "Completed Success"


def fabric_states(fabric: bool, timeout_s: int) -> list[str]:
    """The state of each GPU's fabric, once all are joined or the time is over; where there is none, GPUs are ready."""
    fields = ["fabric.state", "fabric.status"] if fabric else ["index"]
    deadline = time.monotonic() + timeout_s
    while True:
        states = [" ".join(row.values()) if fabric else READY for row in query_gpus(fields)]
        if all(state == READY for state in states) or time.monotonic() > deadline:
            return states
        time.sleep(1)


def explain(states: list[str], version: str, timeout_s: int) -> str:
    """Why GPUs are not joined."""
    manager = installed().get("nvidia-fabricmanager")
    late = ", ".join(f"GPU {index} {state}" for index, state in enumerate(states) if state != READY)
    return (
        f"The fabric is not complete after {timeout_s} s ({late}), so CUDA would fail with error 802. Fabric Manager "
        f"is {manager.version if manager else 'not installed'}, the driver {version}; they must be the same. Look on "
        "the host at: systemctl status nvidia-fabricmanager; tail /var/log/fabricmanager.log"
    )


def expect(count: int, states: list[str], version: str) -> None:
    """Refuse a host that has lost GPUs: nvidia-smi leaves out those that fell off the bus before it was loaded."""
    if not states or len(states) < count:
        raise HostError(
            f"Driver {version} is loaded, but nvidia-smi shows {len(states) or 'no'} GPUs"
            f"{f' of {count}' if count else ''}. Compare on the host with: lspci -d 10de:; journalctl -k -g 'NVRM|Xid'."
            " A GPU that is missing may come back with a power cycle (not a mere reboot), or needs to be reseated."
        )


def look(params: dict[str, Any], check_mode: bool) -> dict[str, object]:
    """What runs; raises HostError where that is not enough."""
    version, fabric, timeout_s = params["version"], params["fabric"], params["timeout"]
    loaded = loaded_version()
    if check_mode and loaded != version:
        return {"loaded": loaded, "gpus": 0, "fabric": []}
    if loaded != version:
        raise HostError(
            f"The loaded driver is {loaded or 'none'}, wanted is {version}. Look on the host at: dkms status"
        )
    states = fabric_states(fabric, 0 if check_mode else timeout_s)
    expect(params["gpus"], states, version)
    if not check_mode and any(state != READY for state in states):
        raise HostError(explain(states, version, timeout_s))
    return {"loaded": loaded, "gpus": len(states), "fabric": states if fabric else []}


def main() -> None:
    spec = {
        "version": {"type": "str", "required": True},
        "fabric": {"type": "bool", "required": True},
        "gpus": {"type": "int", "default": 0},
        "timeout": {"type": "int", "default": 120},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    try:
        seen = look(module.params, module.check_mode)
    except LibraryMismatchError as error:
        if not module.check_mode:  # which foretold the packages' repair a task earlier
            module.fail_json(msg=str(error))
        seen = {"loaded": "", "gpus": 0, "fabric": []}
    except HostError as error:
        module.fail_json(msg=str(error))
    record_step(module, seen)
    module.exit_json(changed=False, **seen)


if __name__ == "__main__":
    main()
