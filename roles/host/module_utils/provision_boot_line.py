"""The kernel's command line: what GRUB gives it at the next boot, and why only a reboot brings it about.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Sequence

from ansible.module_utils.provision_host import HostError, read_text, remove_file, write_file

DROP_IN = "/etc/default/grub.d/90-provision.cfg"
GRUB_CFG = "/boot/grub/grub.cfg"
CMDLINE = "/proc/cmdline"
HEADER = "# Written by provision (role host); changes made here are undone by its next run.\n"
FORMER = "/run/provision/kernel-parameters.former"  # goes with the kernel of which it tells
ASKED = re.compile(r'^GRUB_CMDLINE_LINUX="\$GRUB_CMDLINE_LINUX ?(.*)"$', re.MULTILINE)
ASSIGNED = re.compile(
    r"""^[ \t]*(?:export[ \t]+)?GRUB_CMDLINE_LINUX=((?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"';])*)""",
    re.MULTILINE | re.DOTALL,
)
# Each script of /etc/grub.d marks what it wrote. 10_linux has the system's own kernels, 10_linux_zfs those on ZFS.
OWN_KERNELS = re.compile(
    r"^### BEGIN /etc/grub\.d/(10_linux\w*) ###$(.*?)^### END /etc/grub\.d/\1 ###$", re.MULTILINE | re.DOTALL
)
ENTRY = re.compile(r"^\s*linux(?:efi|16)?\s+(.*)$", re.MULTILINE)


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


def entries(text: str) -> list[list[str]]:
    """The words of each boot entry of the system's own kernels: ours do not reach memtest86+ or another system's."""
    own = ENTRY.findall("".join(section for _, section in OWN_KERNELS.findall(text)))
    return [words.split() for words in own or ENTRY.findall(text)]


def is_lacking(parameters: Sequence[str]) -> bool:
    """Whether GRUB's own file is not there, or an entry of it lacks a parameter."""
    text = read_text(GRUB_CFG)
    return text is None or not all(is_in_order(parameters, words) for words in entries(text))


def is_stale(parameters: Sequence[str]) -> bool:
    """Whether GRUB's own file is older than ours, or an entry of it lacks a parameter."""
    return is_lacking(parameters) or os.stat(GRUB_CFG).st_mtime < os.stat(DROP_IN).st_ctime


def overriding(parameters: Sequence[str]) -> list[str]:
    """The files that GRUB reads after ours, and that set its variable anew without what ours has put into it."""
    found: list[str] = []
    for path in sorted(str(path) for path in Path(DROP_IN).parent.glob("*.cfg") if str(path) > DROP_IN):
        for value in ASSIGNED.findall(read_text(path) or ""):
            if is_in_order(parameters, re.sub("[\"']", " ", value).split()):
                found = []
            elif not re.search(r"GRUB_CMDLINE_LINUX\b", value):
                found.append(path)
    return list(dict.fromkeys(found))


def refuse_overridden(parameters: Sequence[str]) -> None:
    """Stop where GRUB would make its entries without the parameters: no reboot would bring them about."""
    files = " and ".join(overriding(parameters))
    if files:
        raise HostError(
            f"GRUB reads {files} after our {DROP_IN}, and GRUB_CMDLINE_LINUX is set anew there: the kernel would be "
            f"started without {' '.join(parameters)}. Have that line add to what is there, as in "
            'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX more", or take it out, and run again.'
        )


def refuse_lacking(parameters: Sequence[str]) -> None:
    """Stop where GRUB has just made its entries without the parameters, for whatever reason."""
    refuse_overridden(parameters)
    if is_lacking(parameters):
        seen = "is not there" if read_text(GRUB_CFG) is None else f"has an entry without {' '.join(parameters)}"
        raise HostError(
            f"update-grub ended well, and still {GRUB_CFG} {seen}, so that no reboot would bring it about. See on the "
            "host where the kernel's command line comes from: grep -rn GRUB_CMDLINE_LINUX /etc/default/grub "
            "/etc/default/grub.d /etc/grub.d; mend that and run again."
        )


def reboot_reason(parameters: Sequence[str]) -> str:
    """Why only a reboot brings about what is asked for; empty if the kernel runs with it."""
    running = in_effect()
    if not is_in_order(parameters, running):
        missing = [word for word in parameters if word not in running] or parameters
        return f"the kernel was started without {' '.join(missing)}"
    more = surplus(parameters)
    return f"the kernel was started with {' '.join(more)}, not asked for any more" if more else ""
