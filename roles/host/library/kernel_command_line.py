#!/usr/bin/python
"""Ansible module: parameters of the kernel's command line, in GRUB's configuration and, after a reboot, in effect."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from typing import Any, Iterator, Sequence

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_boot_line import (
    DROP_IN,
    GRUB_CFG,
    ask,
    is_stale,
    reboot_reason,
    refuse_lacking,
    refuse_overridden,
    text_with,
)
from ansible.module_utils.provision_host import Change, HostError, converge, file_change, remove_file, run

DOCUMENTATION = r"""
module: kernel_command_line
short_description: Converges parameters of the kernel's command line
description:
  - Writes a file in C(/etc/default/grub.d) that adds the parameters to whatever else the host asks of its kernel, and
    has C(update-grub) make C(/boot/grub/grub.cfg) anew where that is older, or an entry of the system's own kernels
    lacks one of them. Where a later file there sets C(GRUB_CMDLINE_LINUX) anew without them, it stops and names that
    file before anything is changed; and it stops where C(update-grub) leaves them out for any other reason.
  - The kernel has them after a reboot. RV(pending) says why one is needed, for as long as it is; this module never
    reboots. Parameters that are no longer asked for count too; once GRUB has been told that there are none, the file
    goes.
options:
  parameters:
    description: The parameters, in their order, such as V(iommu=pt). Parameters of others are left alone.
    type: list
    elements: str
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
- name: Set huge pages aside before memory is in pieces
  kernel_command_line:
    parameters: [hugepagesz=1G, hugepages=16]
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: ["Asked the kernel for iommu=pt at the next boot.", "Had GRUB make its configuration anew."]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each file that differs.
  returned: always
  type: list
  elements: dict
pending:
  description: Why a reboot is needed, as a sentence; empty when it is not.
  returned: always
  type: list
  elements: str
  sample: [the kernel was started without iommu=pt]
"""

# What needs no quoting in GRUB's file, in the shell that reads it, and on the kernel's command line.
PLAIN = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.,:=/@+%-]*")
UPDATE_GRUB = "/usr/sbin/update-grub"


def plan(parameters: Sequence[str]) -> Iterator[Change]:
    """Our file, then GRUB's."""
    for word in parameters:
        if not PLAIN.fullmatch(word):
            raise HostError(f"{word!r} is no kernel parameter: use letters, digits and _ . , : = / @ + % - only.")
    if not parameters and not os.path.exists(DROP_IN):
        return
    if not os.path.exists(UPDATE_GRUB):
        raise HostError(
            f"This host has no update-grub, so its boot loader is not GRUB. Add {' '.join(parameters)} to the kernel's "
            "command line by hand, and set host_kernel_parameters: [] for it."
        )
    changes = list(file_changes(parameters))
    is_made_anew = bool(changes) or is_stale(parameters)
    if is_made_anew:  # entries that stand say more than files that may set the line in a way we do not read
        refuse_overridden(parameters)
    yield from changes
    if is_made_anew:
        words = ("made before our file\n", f"asks for {' '.join(parameters) or 'nothing of ours'}\n")
        yield Change("Had GRUB make its configuration anew.", lambda: make_anew(parameters), GRUB_CFG, *words)
    if not parameters:  # only now: as long as it is there, a run that was killed before GRUB read it is made good
        header = "" if changes else DROP_IN
        yield Change(f"Removed {DROP_IN}.", lambda: remove_file(DROP_IN), header, text_with([]), "")


def make_anew(parameters: Sequence[str]) -> None:
    """Have GRUB make its entries, and see that they have the parameters: a reboot is to be worth it."""
    run([UPDATE_GRUB])
    refuse_lacking(parameters)


def file_changes(parameters: Sequence[str]) -> Iterator[Change]:
    """Our file, if it asks for something else than it should."""
    sentence = f"Asked the kernel for {' '.join(parameters) or 'nothing of ours any more'} at the next boot."
    for change in file_change(DROP_IN, text_with(parameters), sentence):
        yield replace(change, act=lambda: ask(parameters)) if change.action == sentence else change


def main() -> None:
    spec = {"parameters": {"type": "list", "elements": "str", "required": True}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    parameters = module.params["parameters"]

    def facts() -> dict[str, Any]:
        reason = reboot_reason(parameters)
        if reason:
            module.warn(f"A reboot waits: {reason}.")
        return {"pending": [reason] if reason else []}

    converge(module, lambda: plan(parameters), facts)


if __name__ == "__main__":
    main()
