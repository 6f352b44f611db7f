#!/usr/bin/python
"""Ansible module: whether a host must be rebooted, and why, told from what runs. It reboots nothing itself."""

from __future__ import annotations

import os
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_boot_line import reboot_reason as kernel_reason
from ansible.module_utils.provision_driver import (
    KernelModule,
    LibraryMismatchError,
    built_module,
    in_words,
    is_mig_at_once,
    is_nouveau_busy,
    loaded_module,
    next_kernel,
    query_gpus,
    told_apart,
)
from ansible.module_utils.provision_host import Change, HostError, converge, read_text

DOCUMENTATION = r"""
module: host_reboot
short_description: Decides from what runs whether a host must be rebooted
description:
  - Compares the loaded driver, the kernel's command line and the modes of the GPUs with what is wanted, and reads what
    packages asked for in C(/run/reboot-required). It never asks what a run has changed, so that a reboot that a killed
    run owes is made good by the next.
  - The change that it reports is the reboot, which the caller does. Called again with O(after), it verifies that the
    host was booted anew and that no reason is left.
  - Reasons without which the host cannot work (the driver) fail where a reboot is not allowed; the others wait, and are
    told as RV(pending).
options:
  driver:
    description:
      - The wanted version of the driver; empty to leave the driver out. No reboot is made into a kernel that has no
        module of it.
    type: str
    default: ""
  driver_counts:
    description: Whether another driver that is loaded is a reason, too.
    type: bool
    default: true
  kernel_modules:
    description: The wanted flavour of its kernel modules.
    type: str
    choices: [open, proprietary]
    default: open
  kernel_parameters:
    description: Words that the kernel's command line must have; none of ours besides. Not looked at where left out.
    type: list
    elements: str
  gpu_modes:
    description: Modes of all GPUs by name, C(ecc) and C(mig), each wanted on or off.
    type: dict
    default: {}
  packages:
    description: Whether what packages asked for in C(/run/reboot-required) counts.
    type: bool
    default: false
  allowed:
    description: Whether the host may be rebooted.
    type: bool
    default: false
  planned:
    description:
      - Whether the plan that the run applies names a reboot of this host; true for a run that applies none. A reboot
        that it does not name waits, as where none is allowed. Receipts leave it out, so that looks find what waits.
    type: bool
    default: true
  after:
    description: The boot id before a reboot that was just made; empty before it.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    details: What earlier tasks would change is taken for changed.
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: See whether only a reboot brings the wanted driver to run
  host_reboot:
    driver: 580.126.20
    allowed: true
"""

RETURN = r"""
actions:
  description: The reboot with its reasons, as a sentence; empty where none is needed.
  returned: always
  type: list
  elements: str
  sample: ["Rebooted: driver 580.126.20 is loaded, 580.159.04 is wanted."]
effects:
  description: What each of the actions does to what runs, V(reboot).
  returned: always
  type: list
  elements: str
diff:
  description: One entry for the boot, with its reasons.
  returned: always
  type: list
  elements: dict
pending:
  description: Why a reboot would be needed that is not allowed, or not planned, as sentences.
  returned: always
  type: list
  elements: str
"""

MODULES = "/lib/modules"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
ASKED, ASKED_BY = "/run/reboot-required", "/run/reboot-required.pkgs"


def boot_id() -> str:
    """The kernel's random name for this boot."""
    return (read_text(BOOT_ID) or "").strip()


def asked(wanted: dict[str, Any]) -> KernelModule:
    """The kernel module of the driver that is wanted."""
    return KernelModule(wanted["driver"], wanted["kernel_modules"])


def driver_reasons(wanted: dict[str, Any]) -> Iterator[str]:
    """What of the driver only a reboot brings to run."""
    if wanted["driver"] and wanted["driver_counts"]:
        loaded, module = loaded_module(), asked(wanted)
        if loaded.version and loaded != module:
            yield told_apart(loaded, module)
        elif is_nouveau_busy():
            yield "nouveau holds the GPUs"


def other_reasons(wanted: dict[str, Any], check_mode: bool) -> Iterator[str]:
    """What runs otherwise than wanted, though the host can work so."""
    of_kernel = "" if wanted["kernel_parameters"] is None else kernel_reason(wanted["kernel_parameters"])
    if of_kernel:
        yield of_kernel
    if wanted["gpu_modes"]:
        yield from gpu_reasons(wanted["gpu_modes"], check_mode)
    if wanted["packages"] and os.path.exists(ASKED):
        names = ", ".join(sorted(set((read_text(ASKED_BY) or "").split()))) or "packages"
        yield f"{names} asked for it ({ASKED})"


def gpu_reasons(modes: dict[str, Any], check_mode: bool) -> Iterator[str]:
    """Modes of GPUs that wait; in check mode also those that an earlier task would ask for."""
    fields = [f"{name}.mode.{when}" for name in sorted(modes) for when in ("current", "pending")]
    try:
        rows = query_gpus(["index", "compute_cap", *fields])
    except LibraryMismatchError:
        if check_mode:  # which foretold the packages' repair in an earlier stage
            return
        raise
    for name, is_on in sorted(modes.items()):
        word = "Enabled" if is_on else "Disabled"
        late = [
            row["index"]
            for row in rows
            if row[f"{name}.mode.current"] not in ("[N/A]", word)
            and (row[f"{name}.mode.pending"] == word or check_mode)
            and not (name == "mig" and is_mig_at_once(row))
        ]
        if late:
            yield f"{name.upper()} mode of GPU{'s' if len(late) > 1 else ''} {', '.join(late)} waits to become {word}"


def is_to_be_built(wanted: dict[str, Any]) -> bool:
    """Whether an earlier task, which check mode takes for done, would have the next kernel's module built."""
    has_headers = os.path.exists(f"{MODULES}/{next_kernel()}/build")
    return loaded_module() != asked(wanted) or not has_headers


def refuse_without_module(wanted: dict[str, Any]) -> None:
    """Stop before a reboot after which there would be no driver: its module was not built for the kernel to come."""
    kernel, module = next_kernel(), asked(wanted)
    built = built_module(kernel)
    if built != module:
        raise HostError(
            f"A reboot is needed, but the next one would start Linux {kernel}, for which the driver's kernel module is "
            f"{in_words(built)}, not {in_words(module)}: the GPUs would be gone. Not rebooted. Look on the host "
            f"at: dkms status; /var/lib/dkms/nvidia/{module.version}/build/make.log. With linux-headers-{kernel} "
            f"installed, dkms autoinstall -k {kernel} builds it; then run again."
        )


def plan(wanted: dict[str, Any], check_mode: bool, waiting: list[str]) -> Iterator[Change]:
    """The reboot, if there is a reason; `waiting` receives the reasons of one that is not allowed, or not planned."""
    needed, others = list(driver_reasons(wanted)), list(other_reasons(wanted, check_mode))
    if wanted["after"]:
        verify(wanted["after"], needed + others)
    elif needed and not wanted["allowed"]:
        raise HostError(
            f"A reboot is needed, since {'; '.join(needed)}; it is not allowed. When this host may reboot: set "
            "reboot_allowed: true for it and run provision bootstrap INVENTORY --limit with its name in the inventory."
        )
    elif needed and not wanted["planned"]:
        raise HostError(
            f"A reboot is needed, since {'; '.join(needed)}; the plan that is applied names none of this host. "
            "Plan again: provision plan INVENTORY --out FILE names it; then apply that."
        )
    elif not (wanted["allowed"] and wanted["planned"]):
        waiting += others
    elif needed + others:
        if wanted["driver"] and not (check_mode and is_to_be_built(wanted)):
            refuse_without_module(wanted)
        why = "; ".join(needed + others)
        reasons = "".join(f"{reason}\n" for reason in needed + others)
        yield Change(f"Rebooted: {why}.", lambda: None, "boot", reasons, "none\n", "reboot")


def verify(before: str, reasons: list[str]) -> None:
    """Refuse a reboot that did not take place, or did not bring about what it was for."""
    if boot_id() == before:
        raise HostError(f"The host answers, but was not rebooted: its boot id is still {before}. Reboot it by hand.")
    if reasons:
        raise HostError(
            f"The host was rebooted (boot id {before} became {boot_id()}), and still {'; '.join(reasons)}. Look on "
            "the host at: dkms status; cat /proc/cmdline; journalctl -b -k -g 'nvidia|NVRM|nouveau'"
        )


def main() -> None:
    spec = {
        "driver": {"type": "str", "default": ""},
        "driver_counts": {"type": "bool", "default": True},
        "kernel_modules": {"type": "str", "choices": ["open", "proprietary"], "default": "open"},
        "kernel_parameters": {"type": "list", "elements": "str"},
        "gpu_modes": {"type": "dict", "default": {}},
        "packages": {"type": "bool", "default": False},
        "allowed": {"type": "bool", "default": False},
        "planned": {"type": "bool", "default": True},
        "after": {"type": "str", "default": ""},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    waiting: list[str] = []

    def facts() -> dict[str, Any]:
        until = "a plan that names it is applied" if module.params["allowed"] else "reboot_allowed is true"
        for reason in waiting:
            module.warn(f"A reboot waits: {reason}. It is done once {until}.")
        return {"pending": waiting}

    # Both are for this one call: looking again later asks what the inventory asks.
    converge(module, lambda: plan(module.params, module.check_mode, waiting), facts, forget=["after", "planned"])


if __name__ == "__main__":
    main()
