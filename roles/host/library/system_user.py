#!/usr/bin/python
"""Ansible module: a system user that runs services and cannot log in."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
from typing import Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import Change, converge, read_text, run, write_file

DOCUMENTATION = r"""
module: system_user
short_description: Converges a system user and its group
description:
  - The user has a group of the same name as its own, the home and shell that are asked for, and no password that opens
    it. The home is not made.
options:
  name:
    description: The user's name.
    type: str
    required: true
  home:
    description: Its home.
    type: path
    required: true
  shell:
    description: Its login shell.
    type: path
    default: /usr/sbin/nologin
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Create the user that serves
  system_user:
    name: vllm
    home: /var/lib/provision/vllm
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Made the user vllm.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each of group, user, home, shell and password that differs.
  returned: always
  type: list
  elements: dict
"""

PASSWD, SHADOW = "/etc/passwd", "/etc/shadow"
CLOSED = "none that opens it"


def user_of(name: str) -> pwd.struct_passwd | None:
    """The user as the host knows it."""
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def group_id(name: str) -> int | None:
    """The number of a group; None where there is none of that name."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def password(name: str) -> str:
    """What password opens the user, in words: none where its field begins with `!` or `*`; an empty one opens it."""
    for line in (read_text(SHADOW) or "").splitlines():
        if line.startswith(f"{name}:"):
            return CLOSED if line.split(":")[1][:1] in ("!", "*") else "one that opens it"
    return CLOSED  # a user of the network's has no line here


def set_home(name: str, home: str) -> None:
    """Correct the home where it is written, since usermod refuses to while a process of the user runs."""
    with open(f"{os.path.dirname(PASSWD)}/.pwd.lock", "a", encoding="ascii") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # as lckpwdf(3) does
        lines = [line.split(":") for line in (read_text(PASSWD) or "").splitlines()]
        changed = [[*line[:5], home, line[6]] if line[0] == name else line for line in lines]
        write_file(PASSWD, "".join(":".join(line) + "\n" for line in changed))


def plan(name: str, home: str, shell: str) -> Iterator[Change]:
    """The group, then the user, then each of its properties for itself."""
    user, gid = user_of(name), group_id(name)
    if gid is None and user is not None:
        is_free = not any(user.pw_gid == group.gr_gid for group in grp.getgrall())
        gid = user.pw_gid if is_free else -1
        words = ["groupadd", "--system", *(["--gid", str(gid)] if is_free else []), name]
        yield Change(f"Made the group {name}.", lambda: run(words), f"group {name}", "", "a group\n")
    if user is None:
        group = ["--user-group"] if gid is None else ["--gid", name]
        adding = ["useradd", "--system", *group, "--no-create-home", "--home-dir", home, "--shell", shell, name]
        text = f"home: {home}\nshell: {shell}\npassword: none\n"
        yield Change(f"Made the user {name}.", lambda: run(adding), f"user {name}", "", text)
        return
    shown = [("group", str(user.pw_gid), str(gid) if gid >= 0 else name), ("home", user.pw_dir, home)]
    for what, seen, wanted in [*shown, ("shell", user.pw_shell, shell), ("password", password(name), CLOSED)]:
        if seen != wanted:
            yield Change(
                f"Corrected the {what} of {name}.",
                lambda what=what, wanted=wanted: correct(name, what, wanted),
                f"{what} of {name}",
                f"{seen}\n",
                f"{name if what == 'group' else wanted}\n",
            )


def correct(name: str, what: str, wanted: str) -> None:
    """Bring one property of the user about."""
    if what == "home":
        set_home(name, wanted)
    else:
        value = {"group": name, "password": "!"}.get(what, wanted)
        run(["usermod", f"--{'gid' if what == 'group' else what}", value, name])


def main() -> None:
    spec = {
        "name": {"type": "str", "required": True},
        "home": {"type": "path", "required": True},
        "shell": {"type": "path", "default": "/usr/sbin/nologin"},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    wanted = module.params
    converge(module, lambda: plan(wanted["name"], wanted["home"], wanted["shell"]))


if __name__ == "__main__":
    main()
