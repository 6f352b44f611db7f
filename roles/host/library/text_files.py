#!/usr/bin/python
"""Ansible module: small text files of root, all of a role's at once, and the directories that hold things."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import Change, HostError, absent_change, converge, file_change

DOCUMENTATION = r"""
module: text_files
short_description: Converges a role's directories and small text files in one round trip
description:
  - Files belong to root. Each is written whole beside its place with its final mode, synced and renamed, so that
    nobody ever reads half of it, and a secret is at no time readable by others.
  - A link in the place of a file is replaced by one. A link in the place of a directory is followed, so that it may
    lie on another disk.
options:
  directories:
    description: Directories, made in this order, before the files.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The directory.
        type: str
        required: true
      mode:
        description: Its mode, octal.
        type: str
        default: "0755"
      owner:
        description: Its owner and group, by name; in check mode one that does not exist yet is fine.
        type: str
        default: root
  files:
    description: Files with their whole content.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file.
        type: str
        required: true
      content:
        description: Its text; without it the file must not exist.
        type: str
      mode:
        description: Its mode, octal.
        type: str
        default: "0644"
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Send apt through the proxy
  text_files:
    files:
      - path: /etc/apt/apt.conf.d/90-provision-proxy
        content: |
          Acquire::http::Proxy "http://proxy.example.com:3128";
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Wrote /etc/apt/apt.conf.d/90-provision-proxy.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each file and directory that differs.
  returned: always
  type: list
  elements: dict
"""


def name_of(finder: Any, number: int) -> str:
    """The name of a user or group; the number itself where there is none any more."""
    try:
        return str(finder(number)[0])
    except KeyError:
        return str(number)


def describe(path: str) -> str:
    """What a directory is now, in the words in which it is wanted."""
    try:
        seen = os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            raise HostError(
                f"{path} should be a directory, and is a link that leads nowhere. Remove it and run again."
            ) from None
        return "absent\n"
    if not stat.S_ISDIR(seen.st_mode):
        raise HostError(f"{path} should be a directory, and is something else. Move it away and run again.")
    owner, group = name_of(pwd.getpwuid, seen.st_uid), name_of(grp.getgrgid, seen.st_gid)
    return f"{owner}:{group} {stat.S_IMODE(seen.st_mode):04o}\n"


def make(path: str, owner: str, mode: int) -> None:
    """Make a directory with its mode from the start, or correct one."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not os.path.isdir(path):
        os.mkdir(path, 0o700)
    os.chown(path, pwd.getpwnam(owner).pw_uid, grp.getgrnam(owner).gr_gid)
    os.chmod(path, mode)


def plan(directories: list[dict[str, Any]], files: list[dict[str, Any]]) -> Iterator[Change]:
    """What differs, directories first."""
    for item in directories:
        path, owner, mode = item["path"], item["owner"], int(item["mode"], 8)
        before, after = describe(path), f"{owner}:{owner} {mode:04o}\n"
        if before != after:
            verb = "Made" if before == "absent\n" else "Corrected owner or mode of"
            yield Change(f"{verb} {path}.", lambda p=path, o=owner, m=mode: make(p, o, m), path, before, after)
    for item in files:
        if item["content"] is None:
            yield from absent_change(item["path"])
        else:
            yield from file_change(item["path"], item["content"], mode=int(item["mode"], 8))


def main() -> None:
    path = {"type": "str", "required": True}
    directory = {"path": path, "mode": {"type": "str", "default": "0755"}, "owner": {"type": "str", "default": "root"}}
    file = {"path": path, "content": {"type": "str", "no_log": False}, "mode": {"type": "str", "default": "0644"}}
    spec = {
        "directories": {"type": "list", "elements": "dict", "default": [], "options": directory},
        "files": {"type": "list", "elements": "dict", "default": [], "options": file},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    converge(module, lambda: plan(module.params["directories"], module.params["files"]))


if __name__ == "__main__":
    main()
