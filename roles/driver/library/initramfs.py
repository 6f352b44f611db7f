#!/usr/bin/python
"""Ansible module: initial RAM disks that hold certain files as they are now."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, Sequence

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_driver import kernels
from ansible.module_utils.provision_host import Change, converge, run

DOCUMENTATION = r"""
module: initramfs
short_description: Keeps the initial RAM disks newer than the files that they hold
description:
  - An initial RAM disk holds copies of files below C(/etc/modprobe.d). One that is older than such a file is built
    again, for the kernel that runs and for the one that the next boot starts. A host without initial RAM disks needs
    nothing.
options:
  files:
    description: The files, each of which exists or is about to be written.
    type: list
    elements: str
    required: true
attributes:
  check_mode:
    support: full
    details: A file that is not there yet counts as newer than any disk, as it will be.
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Keep nouveau out of the initial RAM disk
  initramfs:
    files: [/etc/modprobe.d/provision-nouveau.conf]
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Built the initial RAM disk of Linux 6.1.0-30-amd64 again.]
effects:
  description: What each of the actions does to what runs, V(none).
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each disk that is older than a file.
  returned: always
  type: list
  elements: dict
"""

BOOT = Path("/boot")


def newer(files: Sequence[str], disk: Path) -> list[str]:
    """The files that were written, or had their mode changed, after the disk; those that are not there yet, too."""
    built, found = disk.stat().st_mtime, []
    for name in files:
        seen = os.stat(name) if os.path.exists(name) else None
        if seen is None or max(seen.st_mtime, seen.st_ctime) > built:
            found.append(name)
    return found


def plan(files: Sequence[str]) -> Iterator[Change]:
    """One change for each kernel whose disk is older than a file."""
    for kernel in kernels():
        disk = BOOT / f"initrd.img-{kernel}"
        late = newer(files, disk) if disk.exists() else []
        if late:
            yield Change(
                f"Built the initial RAM disk of Linux {kernel} again.",
                lambda kernel=kernel: run(["update-initramfs", "-u", "-k", kernel]),
                str(disk),
                "".join(f"older than {name}\n" for name in late),
                "".join(f"holds {name}\n" for name in late),
            )


def main() -> None:
    spec = {"files": {"type": "list", "elements": "str", "required": True}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    converge(module, lambda: plan(module.params["files"]))


if __name__ == "__main__":
    main()
