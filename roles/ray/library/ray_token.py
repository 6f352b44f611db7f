#!/usr/bin/python
"""Ansible module: the token by which the members of a Ray cluster know each other."""

from __future__ import annotations

import os
import secrets
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import (
    Change,
    HostError,
    access_changes,
    converge,
    read_text,
    sha256_text,
    write_file,
)

DOCUMENTATION = r"""
module: ray_token
short_description: Converges the file with a Ray cluster's token
description:
  - On the head the token is made if there is none, and stays. On the others the file holds the head's. It is readable
    by root alone; systemd hands it to the units as a credential.
options:
  path:
    description: The file.
    type: path
    required: true
  source:
    description: The host that the token is copied from; without it this host makes the token.
    type: str
  value:
    description: With O(source), the token that was read there.
    type: str
    default: ""
  sha256:
    description: Instead of O(value), its SHA-256, in check mode only. A receipt holds this.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: The diff tells that the token differs, and never what it is.
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Make the token of the cluster
  ray_token:
    path: /etc/provision/secrets/ray.token
"""

RETURN = r"""
sha256:
  description: SHA-256 of the file, empty where there is none yet.
  returned: always
  type: str
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Made the token of the Ray cluster.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry when the file is not as it should be.
  returned: always
  type: list
  elements: dict
"""


def plan(wanted: dict[str, Any], check_mode: bool) -> Iterator[Change]:
    """Make the token, copy it, or correct who can read it."""
    path, source, value = wanted["path"], wanted["source"], wanted["value"]
    there = read_text(path)
    if source is None and not there:
        new = secrets.token_hex(32)
        yield Change("Made the token of the Ray cluster.", lambda: put(path, new), path, "no token\n", "a token\n")
    elif source is not None and (not there or sha256_text(there) != wanted["sha256"]):
        if not value and not check_mode:
            raise HostError(
                f"{source} heads this replica and has no token in {path}, so this host cannot join its Ray cluster. "
                f"Run bootstrap for the whole replica, {source} included."
            )
        before = "another token\n" if there else "no token\n"
        sentence = f"Copied the token of the Ray cluster from {source}."
        yield Change(sentence, lambda: put(path, value), path, before, f"the token of {source}\n")
    elif there and any(access_changes(path, 0o600)):
        sentence, before = f"Took {path} out of others' sight.", "readable or writable by others\n"
        yield Change(sentence, lambda: put(path, there), path, before, "root's, mode 0600\n")


def put(path: str, token: str) -> None:
    """Write the token into a directory that only root can enter."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    write_file(path, token, 0o600)


def facts(path: str) -> dict[str, Any]:
    """The file's hash, by which units tell whether they run with it."""
    text = read_text(path)
    return {"sha256": sha256_text(text) if text else ""}


def main() -> None:
    spec = {
        "path": {"type": "path", "required": True},
        "source": {"type": "str"},
        "value": {"type": "str", "default": "", "no_log": True},
        "sha256": {"type": "str", "default": ""},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    wanted = module.params
    if wanted["value"]:
        wanted["sha256"] = sha256_text(wanted["value"])
    converge(module, lambda: plan(wanted, module.check_mode), lambda: facts(wanted["path"]), forget=["value"])


if __name__ == "__main__":
    main()
