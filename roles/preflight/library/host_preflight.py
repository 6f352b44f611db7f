#!/usr/bin/python
"""Ansible module: whether a host is what the inventory says it is, and fit to be prepared. It changes nothing."""

from __future__ import annotations

import time
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_fitness import objections, of_clock
from ansible.module_utils.provision_look import base

DOCUMENTATION = r"""
module: host_preflight
short_description: Checks that a host is what the inventory says, and says everything that is wrong at once
description:
  - Looks at the operating system, its Python, the clock, disks, memory, Secure Boot, and the GPUs and NVSwitches that
    the PCI bus shows, which needs no driver. The host is left as it is.
options:
  profile_name:
    description: The hardware profile that the host must show; empty to compare no hardware.
    type: str
    default: ""
  profiles:
    description: All known hardware profiles, by name.
    type: dict
    default: {}
  supported_os:
    description: Versions of each operating system that are supported, by the C(ID) of C(/etc/os-release).
    type: dict
    required: true
  min_free_disk:
    description: Bytes that must be free at a path before the first bootstrap, by path.
    type: dict
    default: {}
  reserve_disk:
    description: Bytes that must be free at the same paths on a host that has been bootstrapped.
    type: int
    default: 0
  check_memory:
    description: Whether the host must have the memory of its profile.
    type: bool
    default: true
  controller_time:
    description: The controller's clock, in seconds since 1970; with O(max_clock_skew) the host's must agree.
    type: float
    default: 0
  max_clock_skew:
    description: Seconds by which the clocks may differ; 0 compares none.
    type: int
    default: 0
  allow_secure_boot:
    description: Whether Secure Boot may be on.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Check that the host is fit
  host_preflight:
    supported_os: {debian: ["12"]}
    min_free_disk: {/: 21474836480}
"""

RETURN = r"""
problems:
  description: Everything that is wrong, each with what to do, as sentences.
  returned: always
  type: list
  elements: str
notes:
  description: What does not stand in the way but is worth knowing.
  returned: always
  type: list
  elements: str
found:
  description: What the host shows.
  returned: always
  type: dict
"""


def look(wanted: dict[str, Any]) -> tuple[list[str], list[str], dict[str, Any]]:
    """Problems, notes, and what was found."""
    facts = base(wanted["min_free_disk"])
    found = [*objections(facts, wanted), *of_clock(time.time() - wanted["controller_time"], wanted["max_clock_skew"])]
    notes = ["nouveau is loaded; the driver stage takes its place."] if facts["nouveau"] else []
    system = facts["system"]
    shown = {"os": f"{system['id']} {system['version']}", "kernel": system["kernel"], "nouveau": facts["nouveau"]}
    return [str(one) for one in found], notes, {**shown, "nvidia_devices": [each["device"] for each in facts["nvidia"]]}


def main() -> None:
    spec = {
        "profile_name": {"type": "str", "default": ""},
        "profiles": {"type": "dict", "default": {}},
        "supported_os": {"type": "dict", "required": True},
        "min_free_disk": {"type": "dict", "default": {}},
        "reserve_disk": {"type": "int", "default": 0},
        "check_memory": {"type": "bool", "default": True},
        "controller_time": {"type": "float", "default": 0.0},
        "max_clock_skew": {"type": "int", "default": 0},
        "allow_secure_boot": {"type": "bool", "default": False},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    problems, notes, found = look(module.params)
    result = {"changed": False, "problems": problems, "notes": notes, "found": found}
    if problems:
        module.fail_json(msg=" ".join(problems), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
