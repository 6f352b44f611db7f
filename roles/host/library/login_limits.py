#!/usr/bin/python
"""Ansible module: the limits of login sessions, none of them such that nobody could log in any more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import Change, HostError, converge, file_change

DOCUMENTATION = r"""
module: login_limits
short_description: Converges the limits of login sessions
description:
  - Writes a file of pam_limits. A limit of open files above C(fs.nr_open) is refused, since the kernel refuses it too,
    and then nobody can log in.
  - Services get their limits from their units; systemd reads none of these.
options:
  limits:
    description: The value of each item (V(nofile), V(memlock), V(stack), ...), soft and hard; a number or V(unlimited).
    type: dict
    required: true
  nr_open:
    description: The value that C(fs.nr_open) is about to get; 0 for the one that it has.
    type: int
    default: 0
  path:
    description: The file; wholly owned by this module.
    type: str
    default: /etc/security/limits.d/90-provision.conf
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Let sessions open many files
  login_limits:
    limits: {nofile: 1048576}
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Wrote /etc/security/limits.d/90-provision.conf.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for the file, if it differs.
  returned: always
  type: list
  elements: dict
overridden:
  description: Files that are read later and set one of the limits otherwise, as sentences.
  returned: always
  type: list
  elements: str
"""

HEADER = "# Written by provision (role host). Limits of login sessions; services have theirs in their units.\n"
NR_OPEN = Path("/proc/sys/fs/nr_open")


def text_of(limits: dict[str, Any]) -> str:
    """The file: for all users, and for root, whom the star does not mean."""
    return HEADER + "".join(
        f"{who} - {item} {value}\n" for who in ("*", "root") for item, value in sorted(limits.items())
    )


def refuse(limits: dict[str, Any], nr_open: int) -> None:
    """Stop where the kernel would refuse the limit to each who logs in."""
    for item, value in limits.items():
        if not re.fullmatch(r"\d+|unlimited", str(value)):
            raise HostError(f"The limit {item} is {value!r}; expected a number or unlimited. Nothing was changed.")
    most = nr_open or int(NR_OPEN.read_text(encoding="ascii"))
    files = str(limits.get("nofile", 0))
    if files == "unlimited" or int(files) > most:
        raise HostError(
            f"host_nofile is {files}, and this kernel allows {most} (fs.nr_open): with that nobody could log in any "
            "more. Nothing was changed. Set a smaller one, or a larger fs.nr_open in host_extra_sysctls."
        )


def overridden(limits: dict[str, Any], own: Path) -> list[str]:
    """Lines of files with a later name that set the same items otherwise."""
    found = []
    for file in sorted(file for file in own.parent.glob("*.conf") if file.name > own.name):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            fields = line.split("#")[0].split()
            if len(fields) == 4 and fields[3] != str(limits.get(fields[2], fields[3])):
                found.append(f"{file} sets {fields[2]} of {fields[0]} to {fields[3]}, after ours; remove that line.")
    return found


def plan(limits: dict[str, Any], nr_open: int, path: str) -> Iterator[Change]:
    """The file."""
    refuse(limits, nr_open)
    yield from file_change(path, text_of(limits))


def main() -> None:
    spec = {
        "limits": {"type": "dict", "required": True},
        "nr_open": {"type": "int", "default": 0},
        "path": {"type": "str", "default": "/etc/security/limits.d/90-provision.conf"},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    limits, nr_open, path = (module.params[name] for name in ("limits", "nr_open", "path"))

    def facts() -> dict[str, list[str]]:
        found = overridden(limits, Path(path))
        for sentence in found:
            module.warn(sentence)
        return {"overridden": found}

    converge(module, lambda: plan(limits, nr_open, path), facts)


if __name__ == "__main__":
    main()
