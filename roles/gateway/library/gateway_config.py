#!/usr/bin/python
"""Ansible module: what the gateway runs with, put in place and loaded only after HAProxy itself accepted it."""

from __future__ import annotations

import os
import re
import socket
import time
from functools import partial
from pathlib import Path
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_files import work_folder
from ansible.module_utils.provision_host import (
    Change,
    HostError,
    access_changes,
    converge,
    file_change,
    read_text,
    remove_file,
    run,
    sha256_text,
    write_file,
)

DOCUMENTATION = r"""
module: gateway_config
short_description: Converges HAProxy's configuration, checked by HAProxy itself, and has the running one load it
description:
  - When a file would change, the installed HAProxy reads all of the new ones first; what it refuses is not put in
    place, and the running process stays as it is.
  - The configuration tells the process its own hash. What runs is asked for it, and is reloaded if it says another. So
    a run that was interrupted between the two is made good by the next. A reload cuts no connection.
options:
  state:
    description: V(absent) removes the files.
    type: str
    choices: [present, absent]
    default: present
  folder:
    description: Where the files lie, for root alone. Other files are removed from there.
    type: path
    required: true
  config:
    description: Text of C(haproxy.cfg), in which C(@SHA@) stands for the hash of all the files.
    type: str
    default: ""
  files:
    description: Texts of the files that it names, by name.
    type: dict
    default: {}
  secrets:
    description: As O(files), of those that nobody may see.
    type: dict
    default: {}
  secrets_sha256:
    description: Instead of O(secrets), the SHA-256 of each, in check mode only. A receipt holds this.
    type: dict
    default: {}
  socket:
    description: The socket of the running process.
    type: path
    required: true
  unit:
    description: The unit that runs it.
    type: str
    default: provision-gateway.service
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: The diff tells that a secret differs, and never what it is.
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Configure the gateway
  gateway_config:
    folder: /etc/provision/secrets/gateway
    config: "{{ lookup('ansible.builtin.template', 'haproxy.cfg.j2') }}"
    files: {keys.map: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 billing"}
    socket: /run/provision-gateway/admin.sock
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Rewrote /etc/provision/secrets/gateway/haproxy.cfg., Reloaded provision-gateway.service.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), what runs reads its files again,
      and serves on; V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each file that differs, and for a process that runs with others.
  returned: always
  type: list
  elements: dict
"""

CONFIG = "haproxy.cfg"
ADDRESS = "keepalived.conf"
KEEPALIVED = "/usr/sbin/keepalived"
PROGRAM = re.compile(r'^ *script "(\S+)', re.MULTILINE)
MARK = "@SHA@"
NAME = "PROVISION_GATEWAY_SHA"
HAPROXY = "/usr/sbin/haproxy"
WORK = "/run/provision"
LOAD_S = 30
ALERT = re.compile(r"\[ALERT\]\s+\(\d+\) : (config : )?")


def wanted_sha(params: dict[str, Any]) -> str:
    """The hash of all that the process reads."""
    texts = {CONFIG: params["config"], **params["files"]}
    shas = {**{name: sha256_text(text) for name, text in texts.items()}, **params["secrets_sha256"]}
    return sha256_text("".join(f"{name} {sha}\n" for name, sha in sorted(shas.items())))


def running_sha(path: str) -> str:
    """The hash of what the running process was given; empty where none runs."""
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(5)
            channel.connect(path)
            channel.sendall(f"show env {NAME}\n".encode())
            said = b"".join(iter(lambda: channel.recv(4096), b""))
    except OSError:
        return ""
    return said.decode(errors="replace").strip().partition("=")[2] or "unknown"


def verify(params: dict[str, Any], texts: dict[str, str]) -> None:
    """Have HAProxy read the new files beside the old ones; a refusal is a HostError."""
    with work_folder(WORK, "verify-gateway") as folder:
        for name, text in texts.items():
            path = Path(folder, name)
            path.touch(mode=0o600)
            path.write_text(text.replace(f"{params['folder']}/", f"{folder}/"), encoding="utf-8")
        done = run([HAPROXY, "-c", "-f", f"{folder}/{CONFIG}"], check=False, timeout_s=60)
        said = (done.out + done.err).replace(f"{folder}/", "")
        if ADDRESS in texts and os.path.exists(KEEPALIVED):
            verify_address(f"{folder}/{ADDRESS}", texts[ADDRESS])
    if done.rc != 0:
        raise HostError(
            "HAProxy refuses its configuration; nothing was changed, and the gateway serves as before. "
            f"{complaint(said)} Correct the gateway_ variables of the inventory and run again."
        )


def verify_address(path: str, text: str) -> None:
    """Have keepalived read how the shared address is kept; a refusal is a HostError.

    It refuses a program that is not there; in check mode that may be one which the run would bring.
    """
    if not all(os.path.exists(program) for program in PROGRAM.findall(text)):
        return
    done = run([KEEPALIVED, "-t", "-f", path], check=False, timeout_s=60)
    if done.rc != 0:
        said = " ".join((done.out + done.err).replace(path, ADDRESS).split())[-500:]
        raise HostError(
            f"keepalived refuses its configuration; nothing was changed, and the gateway serves as before. {said} "
            "Correct gateway_address, gateway_interface or gateway_router_id and run again."
        )


def complaint(said: str) -> str:
    """What HAProxy has against a configuration, without what stands in front of each of its lines."""
    lines = [ALERT.sub("", line) for line in said.splitlines() if ALERT.match(line)]
    lines = [line for line in lines if "rror(s) found" not in line and "errors found" not in line]
    return "; ".join(lines[:5]) + "." if lines else said.strip()[-500:]


def put_secret(path: str, text: str) -> None:
    """Write a file that only root may read."""
    write_file(path, text, 0o600)


def plan_folder(path: str) -> Iterator[Change]:
    """The folder, closed to others before anything lies in it."""
    if not os.path.isdir(path):

        def make() -> None:
            Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.mkdir(path, 0o700)

        yield Change(f"Made {path}.", make, path, "absent\n", "root:root 0700\n")
    elif os.stat(path).st_mode & 0o77:
        yield Change(f"Closed {path} to others.", partial(os.chmod, path, 0o700), path, "open to others\n", "0700\n")


def plan_secret(path: str, text: str, sha256: str) -> Iterator[Change]:
    """A secret: a diff would show it, so it only says that it differs."""
    there = read_text(path)
    if there is None or sha256_text(there) != sha256 or any(access_changes(path, 0o600)):
        words = (f"{'none' if there is None else 'another secret, or open to others'}\n", "the secret wanted\n")
        yield Change(f"Wrote {path}.", partial(put_secret, path, text), path, *words)


def removal(path: str) -> Change:
    """A file that is not needed any more. It may have been a secret, so nobody is shown what it said."""
    return Change(f"Removed {path}.", partial(remove_file, path), path, "a file\n", "")


def plan_files(params: dict[str, Any], texts: dict[str, str]) -> Iterator[Change]:
    """Every file, and none besides."""
    folder = params["folder"]
    for name, text in sorted(texts.items()):
        yield from file_change(f"{folder}/{name}", text, mode=0o600)
    for name, sha in sorted(params["secrets_sha256"].items()):
        yield from plan_secret(f"{folder}/{name}", params["secrets"].get(name, ""), sha)
    for path in sorted(Path(folder).glob("*")):
        if path.name not in texts and path.name not in params["secrets_sha256"]:
            yield removal(str(path))


def load(params: dict[str, Any], sha: str) -> None:
    """Have the running process take the new files, and wait until it has."""
    run(["systemctl", "reload", params["unit"]])
    deadline = time.monotonic() + LOAD_S
    while running_sha(params["socket"]) != sha:
        if time.monotonic() > deadline:
            raise HostError(
                f"{params['unit']} was told to read its new configuration, and {LOAD_S} s later still runs with the "
                f"old one. It serves on as before. See why:  journalctl -u {params['unit']} -n 50"
            )
        time.sleep(0.2)


def plan(params: dict[str, Any]) -> Iterator[Change]:
    """What differs, once HAProxy has accepted it; then the running process, if it was given something else."""
    if params["state"] == "absent":
        yield from map(removal, sorted(map(str, Path(params["folder"]).glob("*"))))
        return
    sha = wanted_sha(params)
    texts = {**params["files"], CONFIG: params["config"].replace(MARK, sha)}
    changes = [*plan_folder(params["folder"]), *plan_files(params, texts)]
    knows_all = params["secrets"].keys() == params["secrets_sha256"].keys()
    if changes and knows_all and os.path.exists(HAPROXY):
        verify(params, {**texts, **params["secrets"]})
    yield from changes
    running = running_sha(params["socket"])
    if running and running != sha:
        words = (f"started with {running[:12]}\n", f"started with {sha[:12]}\n")
        act = partial(load, params, sha)
        yield Change(f"Reloaded {params['unit']}; no connection is cut.", act, params["unit"], *words, "reload")


def main() -> None:
    spec = {
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "folder": {"type": "path", "required": True},
        "config": {"type": "str", "default": "", "no_log": False},
        "files": {"type": "dict", "default": {}},
        "secrets": {"type": "dict", "default": {}, "no_log": True},
        "secrets_sha256": {"type": "dict", "default": {}, "no_log": False},
        "socket": {"type": "path", "required": True},
        "unit": {"type": "str", "default": "provision-gateway.service"},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    params = module.params
    if params["secrets"]:
        params["secrets_sha256"] = {name: sha256_text(text) for name, text in params["secrets"].items()}
    converge(module, lambda: plan(params), forget=["secrets"])


if __name__ == "__main__":
    main()
