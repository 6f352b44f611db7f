#!/usr/bin/python
"""Ansible module: the governor of all CPUs, as far as the host lets its system choose one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import Change, HostError, converge

DOCUMENTATION = r"""
module: cpu_governor
short_description: Converges the frequency governor of all CPUs
description:
  - Sets the governor of each cpufreq policy that has another. It is lost at a reboot; a unit must set it again.
  - A host without cpufreq, such as a virtual machine or one whose firmware keeps the frequencies to itself, is left as
    it is, and the module says so.
options:
  governor:
    description: The governor, such as V(performance); one that the host does not have is refused with those it has.
    type: str
    required: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Keep all CPUs at their highest frequency
  cpu_governor:
    governor: performance
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Set the governor performance on 192 of 192 CPU policies.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for all policies, if any differs.
  returned: always
  type: list
  elements: dict
driver:
  description: The cpufreq driver of the host; empty where there is none.
  returned: always
  type: str
  sample: intel_pstate
"""

CPUFREQ = Path("/sys/devices/system/cpu/cpufreq")


def read(policy: Path, name: str) -> str:
    """One file of a policy; empty where there is none, as for a CPU that is off."""
    try:
        return (policy / name).read_text(encoding="ascii").strip()
    except OSError:
        return ""


def counted(governors: dict[Path, str]) -> str:
    """How many policies have which governor, one a line."""
    return "".join(f"{name}: {count} CPU policies\n" for name, count in sorted(Counter(governors.values()).items()))


def put(policies: list[Path], governor: str) -> None:
    """Hand the governor to the kernel."""
    for policy in policies:
        try:
            (policy / "scaling_governor").write_text(governor + "\n", encoding="ascii")
        except OSError as error:
            raise HostError(f"The kernel does not take {governor} for {policy.name}: {error.strerror}.") from None


def plan(governor: str) -> Iterator[Change]:
    """One change for all policies that have another governor."""
    found = {policy: read(policy, "scaling_governor") for policy in sorted(CPUFREQ.glob("policy*"))}
    present = {policy: name for policy, name in found.items() if name}
    for policy in present:
        offered = read(policy, "scaling_available_governors").split()
        if governor not in offered:
            raise HostError(
                f"{policy.name} of this host has no governor {governor}; its driver {read(policy, 'scaling_driver')} "
                f"has {', '.join(offered)}. Set host_cpu_governor to one of these, or to an empty string."
            )
    differing = [policy for policy, name in present.items() if name != governor]
    if differing:
        yield Change(
            f"Set the governor {governor} on {len(differing)} of {len(present)} CPU policies.",
            lambda: put(differing, governor),
            str(CPUFREQ),
            counted(present),
            counted(dict.fromkeys(present, governor)),
        )


def facts() -> dict[str, str]:
    """The driver, and what is to be said where there is none."""
    drivers = sorted({read(policy, "scaling_driver") for policy in CPUFREQ.glob("policy*")} - {""})
    if drivers:
        return {"driver": ", ".join(drivers)}
    return {"driver": "", "msg": "This host has no cpufreq: its firmware or hypervisor chooses the CPUs' frequencies."}


def main() -> None:
    spec = {"governor": {"type": "str", "required": True}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    converge(module, lambda: plan(module.params["governor"]), facts)


if __name__ == "__main__":
    main()
