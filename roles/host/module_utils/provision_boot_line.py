"""The kernel's command line: what GRUB gives it at the next boot, and why only a reboot brings it about.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Sequence

from ansible.module_utils.provision_host import read_text, remove_file, write_file

DROP_IN = "/etc/default/grub.d/90-provision.cfg"
GRUB_CFG = "/boot/grub/grub.cfg"
CMDLINE = "/proc/cmdline"
HEADER = "# Written by provision (role host); changes made here are undone by its next run.\n"
FORMER = "/run/provision/kernel-parameters.former"  # goes with the kernel of which it tells
ASKED = re.compile(r'^GRUB_CMDLINE_LINUX="\$GRUB_CMDLINE_LINUX ?(.*)"$', re.MULTILINE)


def asked() -> list[str]:
    """The parameters that our file asks for."""
    found = ASKED.search(read_text(DROP_IN) or "")
    return shlex.split(found[1]) if found else []


def former() -> list[str]:
    """The parameters that our file asked for before, and that the kernel had when they were taken out."""
    return (read_text(FORMER) or "").split()


def text_with(parameters: Sequence[str]) -> str:
    """Our file with these parameters."""
    return f'{HEADER}GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX {" ".join(parameters)}"\n'


def surplus(parameters: Sequence[str]) -> list[str]:
    """The parameters that the kernel has from us, and that are not asked for any more."""
    running = in_effect()
    return [word for word in dict.fromkeys([*asked(), *former()]) if word in running and word not in parameters]


def ask(parameters: Sequence[str]) -> None:
    """Write our file; before that, note what the kernel will go on having until it is started anew."""
    left = surplus(parameters)
    if left:
        os.makedirs(os.path.dirname(FORMER), exist_ok=True)
        write_file(FORMER, " ".join(left) + "\n", 0o644)
    else:
        remove_file(FORMER)
    write_file(DROP_IN, text_with(parameters), 0o644)


def in_effect() -> list[str]:
    """The parameters that the running kernel was started with."""
    return (read_text(CMDLINE) or "").split()


def is_in_order(parameters: Sequence[str], words: Sequence[str]) -> bool:
    """Whether all parameters are there, in this order: `hugepages=` counts for the `hugepagesz=` before it."""
    rest = iter(words)
    return all(parameter in rest for parameter in parameters)


def is_stale(parameters: Sequence[str]) -> bool:
    """Whether GRUB's own file is older than ours, or an entry of it lacks a parameter."""
    text = read_text(GRUB_CFG)
    if text is None or os.stat(GRUB_CFG).st_mtime < os.stat(DROP_IN).st_ctime:
        return True
    entries = re.findall(r"^\s*linux(?:efi|16)?\s+(.*)$", text, re.MULTILINE)
    return not all(is_in_order(parameters, entry.split()) for entry in entries)


def reboot_reason(parameters: Sequence[str]) -> str:
    """Why only a reboot brings about what is asked for; empty if the kernel runs with it."""
    running = in_effect()
    if not is_in_order(parameters, running):
        missing = [word for word in parameters if word not in running] or parameters
        return f"the kernel was started without {' '.join(missing)}"
    more = surplus(parameters)
    return f"the kernel was started with {' '.join(more)}, not asked for any more" if more else ""
