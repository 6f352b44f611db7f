#!/usr/bin/python
"""Ansible module: packages that are installed, judged by dpkg alone as long as nothing is missing."""

from __future__ import annotations

from typing import Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_apt import install, installed, lost_dependencies, satisfies
from ansible.module_utils.provision_host import Change, converge
from ansible.module_utils.provision_transient import after

DOCUMENTATION = r"""
module: apt_packages
short_description: Converges Debian packages
description:
  - Installs what is missing or stopped half way, and what the packages need and somebody removed by force, without
    recommended packages, in one transaction. The work is the transient unit C(provision-packages), which an interrupted
    run leaves at work and the next waits for.
  - Fetches the package lists only when the missing packages cannot be installed by those at hand. So check mode works
    on a host whose lists were never fetched, and a host that has everything answers without apt.
options:
  names:
    description: Names of the packages; V(name=version) asks for a version, which may be a pattern such as V(580.1-*).
    type: list
    elements: str
    required: true
  lock_timeout:
    description: Seconds to wait for another process that holds apt's lock.
    type: int
    default: 300
  services:
    description: Whether the packages may start the services that they bring.
    type: bool
    default: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Install what the serving environment needs of the host
  apt_packages:
    names: [libnuma1, libgomp1]
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Installed libnuma1.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry that lists the packages which differ.
  returned: always
  type: list
  elements: dict
"""

UNIT = "provision-packages"


def plan(names: list[str], lock_timeout_s: int, services: bool = True) -> Iterator[Change]:
    """One change that installs all that is missing."""
    wanted = {name: version for name, _, version in (spec.partition("=") for spec in names)}
    present = installed()
    wanted.update({name: wanted.get(name, "") for name in lost_dependencies(wanted, present)})
    missing = {name: version for name, version in wanted.items() if not satisfies(present.get(name), version)}
    if missing:
        before = {name: present[name].version if name in present else "absent" for name in missing}
        yield Change(
            f"Installed {', '.join(sorted(missing))}.",
            lambda: install(missing, lock_timeout_s, UNIT, alone=not services),
            "packages",
            "".join(f"{name}: {before[name]}\n" for name in sorted(missing)),
            "".join(f"{name}: {missing[name] or 'installed'}\n" for name in sorted(missing)),
        )


def main() -> None:
    spec = {
        "names": {"type": "list", "elements": "str", "required": True},
        "lock_timeout": {"type": "int", "default": 300},
        "services": {"type": "bool", "default": True},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    asked = (module.params["names"], module.params["lock_timeout"], module.params["services"])
    converge(module, lambda: after(UNIT, module.check_mode, lambda: plan(*asked)))


if __name__ == "__main__":
    main()
