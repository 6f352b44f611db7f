"""The options with which OpenSSH connects to a host: Ansible's own, so that both use one connection."""

from __future__ import annotations

import hashlib
import os
import shlex
from pathlib import Path

from provision.inventory.model import Host
from provision.ssh.trouble import TIMEOUT

# A host that hangs would otherwise hold its connection, and with it the whole run, for ever.
SSH_OPTIONS = ("ControlMaster=auto", "ControlPersist=60s", "ServerAliveInterval=20", "ServerAliveCountMax=6")
NO_PASSWORD = (
    "KbdInteractiveAuthentication=no",
    "PreferredAuthentications=gssapi-with-mic,gssapi-keyex,hostbased,publickey",
    "PasswordAuthentication=no",
)
LONGEST_SOCKET = 90  # bytes; the kernel takes 107, and ssh first uses the name with 17 more


def control_directory() -> Path:
    """Where the sockets of shared connections are; Ansible is told the same."""
    return Path(os.environ.get("ANSIBLE_SSH_CONTROL_PATH_DIR") or "~/.ansible/cp").expanduser()


def ssh_command(host: Host) -> list[str]:
    """`ssh`, its options and the host: what Ansible's ssh plugin puts together, and nothing that could ask a person.

    Of an option that is given twice, ssh takes the first.
    """
    own = host.variables.get("ansible_ssh_args") is not None
    options = ["BatchMode=yes", "StrictHostKeyChecking=yes"]
    options += [] if own else SSH_OPTIONS
    options += [f"Port={host.port}"] if host.port else []
    options += [f'IdentityFile="{host.key_file}"'] if host.key_file else []
    options += NO_PASSWORD
    options += [f'User="{host.user}"'] if host.user else []
    options += [f"ConnectTimeout={TIMEOUT}"]
    words = [word for option in options for word in ("-o", option)]
    words += host.ssh_args
    return ["ssh", *words, *_shared(host, words), host.address]


def _shared(host: Host, words: list[str]) -> list[str]:
    """The socket of a connection that is kept, by the name that Ansible gives it; none where one is configured."""
    said = shlex.join(words).lower()
    if "controlpersist" not in said or "controlpath" in said:
        return []
    name = hashlib.sha1(f"{host.address}-{host.port}-{host.user}".encode()).hexdigest()[:10]  # noqa: S324 - a name
    path = control_directory() / name
    if len(str(path)) > LONGEST_SOCKET:
        return ["-o", "ControlPath=none"]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return ["-o", f'ControlPath="{path}"']
