"""One connection to every host at once, before Ansible runs: who answers, who can log in, what stands in the way."""

from __future__ import annotations

import io
import logging
import queue
import shlex
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from provision.inventory.model import Host
from provision.ssh.connect import TIMEOUT, connection
from provision.ssh.trouble import Trouble, explain, misconfigured, missing_python, no_sudo, unsupported

AT_ONCE = 64
SUPPORTED = {("debian", "12"), ("ubuntu", "22.04"), ("ubuntu", "24.04")}
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


def reach(hosts: Sequence[Host]) -> list[Reach]:
    """Reach all hosts, each for at most some 10 seconds, in the order given.

    Threads are daemons, so that Ctrl-C need not wait for hosts that do not answer.
    """
    waiting: queue.SimpleQueue[Host] = queue.SimpleQueue()
    found: queue.SimpleQueue[Reach] = queue.SimpleQueue()
    for host in hosts:
        waiting.put(host)

    def work() -> None:
        while True:
            try:
                host = waiting.get_nowait()
            except queue.Empty:
                return
            found.put(_reach(host))

    for _ in range(min(AT_ONCE, len(hosts))):
        threading.Thread(target=work, daemon=True).start()
    results = {result.host: result for result in (found.get() for _ in hosts)}
    return [results[host.name] for host in hosts]


def _reach(host: Host) -> Reach:
    if host.variables.get("ansible_connection") == "local":
        return Reach(host.name)
    try:
        link = connection(host)
    except Exception as error:  # noqa: BLE001 - a word in the user's ssh_config, or a port that is none
        return Reach(host.name, misconfigured(host, error))
    try:
        with link:
            answer = link.run(
                "/bin/sh -c " + shlex.quote(_questions(host)),
                hide=True,
                warn=True,
                timeout=TIMEOUT,
                in_stream=io.StringIO(f"{_sudo_password(host)}\n") if _sudo_password(host) else False,
            )
    except Exception as error:  # noqa: BLE001 - whatever it is, it concerns this host alone and is put into words
        return Reach(host.name, explain(host, error, link))
    lines = (line[10:].partition("=") for line in answer.stdout.splitlines() if line.startswith("provision."))
    return _judge(host, {key: value.strip() for key, _, value in lines})


def _judge(host: Host, facts: dict[str, str]) -> Reach:
    trouble = None
    if (facts.get("os"), facts.get("release")) not in SUPPORTED:
        trouble = unsupported(facts.get("name") or "of an unknown kind")
    elif facts.get("sudo") != "yes" and not (facts.get("uid") == "0" and host.user == "root"):
        trouble = no_sudo(host)
    elif not facts.get("python"):
        trouble = missing_python(host)
    return Reach(host.name, trouble, facts.get("boot", ""), facts.get("name", ""), facts.get("python", ""))


def _questions(host: Host) -> str:
    python = str(host.variables.get("ansible_python_interpreter") or "python3")
    if python.startswith("auto"):
        python = "python3"
    return QUESTIONS.format(sudo=SUDO_TOLD if _sudo_password(host) else SUDO, python=shlex.quote(python))


def _sudo_password(host: Host) -> str:
    names = ("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass")
    return next((str(host.variables[name]) for name in names if host.variables.get(name)), "")
