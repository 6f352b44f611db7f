"""One connection to every host at once, before Ansible runs: who answers, who can log in, what stands in the way."""

from __future__ import annotations

import contextlib
import logging
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fabric import Connection

from provision.inventory.model import Host
from provision.ssh.connect import connection
from provision.ssh.explain import explain
from provision.ssh.fan import each
from provision.ssh.fit import judge, python_of, sudo_password, told
from provision.ssh.trouble import TIMEOUT, Trouble, misconfigured

# What a host is asked. The sudo password, if there is one, comes on standard input, and is read whether or not sudo
# wants it: nothing may be on its way to a shell that has ended.
SUDO = "sudo -n true"
SUDO_TOLD = """IFS= read -r password; printf '%s\\n' "$password" | sudo -S -p '' true"""
QUESTIONS = """\
{sudo} >/dev/null 2>&1 && echo provision.sudo=yes
echo provision.uid=$(id -u)
echo provision.python=$({python} -c "import sys; print(sys.version.split()[0])" 2>/dev/null)
echo provision.boot=$(cat /proc/sys/kernel/random/boot_id)
. /etc/os-release
echo provision.os=$ID
echo provision.release=$VERSION_ID
echo provision.name=$PRETTY_NAME
"""

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # it would print tracebacks of its own
logging.getLogger("paramiko").propagate = False


@dataclass(frozen=True)
class Reach:
    """What came of reaching one host. Without a `trouble` it is ready for Ansible."""

    host: str
    trouble: Trouble | None = None
    boot_id: str = ""
    os: str = ""
    python: str = ""


@dataclass(frozen=True)
class Spoken:
    """What a host said through fabric, and how the command ended; or why it could not be asked."""

    text: str = ""
    code: int = 0
    trouble: Trouble | None = None


def reach(hosts: Sequence[Host]) -> list[Reach]:
    """Reach all hosts, each for at most some 10 seconds, in the order given."""
    return each(hosts, _reach)


def speak(host: Host, command: str, text: str, timeout: float) -> Spoken:
    """Have a host's `/bin/sh` run a command with a text on its standard input, over a connection of its own."""
    try:
        link = connection(host)
    except Exception as error:  # noqa: BLE001 - a word in the user's ssh_config, or a port that is none
        return Spoken(trouble=misconfigured(host, error))
    try:
        with link:
            return _converse(link, "/bin/sh -c " + shlex.quote(command), text.encode(), time.monotonic() + timeout)
    except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this host alone and is put into words
        return Spoken(trouble=explain(host, error, link))


def _converse(link: Connection, command: str, text: bytes, deadline: float) -> Spoken:
    """Run the command in a session of its own: fabric's own way sends a hundred characters of input a second."""
    link.open()
    channel = link.transport.open_session(timeout=TIMEOUT)
    channel.settimeout(max(0.1, deadline - time.monotonic()))
    channel.exec_command(command)
    with contextlib.suppress(OSError):  # it may have answered and gone
        channel.sendall(text)
        channel.shutdown_write()
    said = b""
    while block := channel.recv(1 << 16):
        said += block
        channel.settimeout(max(0.1, deadline - time.monotonic()))
    if not channel.status_event.wait(max(0.1, deadline - time.monotonic())):
        raise TimeoutError
    return Spoken(said.decode(errors="replace"), channel.recv_exit_status())


def _reach(host: Host) -> Reach:
    if host.variables.get("ansible_connection") == "local":
        return Reach(host.name)
    password = sudo_password(host)
    questions = QUESTIONS.format(sudo=SUDO_TOLD if password else SUDO, python=shlex.quote(python_of(host)))
    answer = speak(host, questions, f"{password}\n" if password else "", TIMEOUT)
    if answer.trouble:
        return Reach(host.name, answer.trouble)
    facts = told(answer.text)
    return Reach(host.name, judge(host, facts), facts.get("boot", ""), facts.get("name", ""), facts.get("python", ""))
