"""One command as root on many hosts at once, by the system's OpenSSH, over the connections that Ansible uses too."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from provision.inventory.model import Host
from provision.ssh.fan import AT_ONCE, each
from provision.ssh.fit import judge, python_of, sudo_password, told
from provision.ssh.options import ssh_command
from provision.ssh.trouble import Trouble, failed, silent, timed_out

ANSWER_S = 120
GREETING_S = 20  # until a host that can be logged in to has said its first line
CANNOT_CONNECT = 255  # ssh's own exit status
# A host first says what it is, as its user, then all else as root. On standard input come the password for sudo, if
# one is known, a line that ends what sudo may or may not have read, and what the command reads. All of it is read,
# whatever happens: nothing may be on its way to a shell that has ended.
START = "#provision"
LOGIN = """\
[ ! -r /etc/os-release ] || . /etc/os-release
printf 'provision.%s\\n' "os=$ID" "release=$VERSION_ID" "name=$PRETTY_NAME" "uid=$(id -u)"
{run}
code=$?; cat >/dev/null; exit $code
"""
SUDO = "sudo -n /bin/sh -c {root}"
SUDO_TOLD = """\
IFS= read -r password
if sudo -n true 2>/dev/null; then sudo -n /bin/sh -c {root}
elif printf '%s\\n' "$password" | sudo -S -p '' true 2>/dev/null; then
{{ printf '%s\\n' "$password"; cat; }} | sudo -k -S -p '' /bin/sh -c {root}
fi"""
ROOT = """\
echo provision.sudo=yes
while IFS= read -r line && [ "$line" != '{start}' ]; do :; done
command -v {python} >/dev/null && echo provision.python=yes || exit 1
echo provision.begin
{script}
"""
BEGIN = "provision.begin\n"


@dataclass(frozen=True)
class Call:
    """What a host is asked: a script for root's `/bin/sh`, and what that finds on its standard input."""

    host: Host
    script: str
    text: str = ""


@dataclass(frozen=True)
class Answer:
    """What a host answered on standard output, with the exit status, and its last word on standard error.

    With a `trouble` it could not be asked, or is not fit to be.
    """

    host: Host
    text: str = ""
    code: int = 0
    error: str = ""
    trouble: Trouble | None = None


def call(
    calls: Sequence[Call],
    *,
    at_once: int = AT_ONCE,
    timeout: float = ANSWER_S,
    on_answer: Callable[[Answer], object] = lambda _answer: None,
) -> list[Answer]:
    """Ask all hosts, in the order given; a host that does not answer costs some 20 seconds, the others none."""
    return each(calls, lambda one: _call(one, timeout), at_once=at_once, on_done=on_answer)


def _call(one: Call, timeout: float) -> Answer:
    host, script, text = one.host, login(one), f"{START}\n{one.text}"
    if password := sudo_password(host):
        text = f"{password}\n{text}"
    if host.variables.get("ansible_connection") == "local":
        return _program(host, ["/bin/sh", "-c", script], text, timeout)
    if has_password(host) or not shutil.which("ssh"):
        from provision.ssh.reach import speak  # noqa: PLC0415 - to load paramiko takes longer than the call

        spoken = speak(host, script, text, timeout)
        return Answer(host, trouble=spoken.trouble) if spoken.trouble else _answer(host, spoken.text, spoken.code, "")
    return _program(host, [*ssh_command(host), "/bin/sh -c " + shlex.quote(script)], text, timeout)


def login(one: Call) -> str:
    """The script for the login user's shell. Its standard input: sudo's password if one is known, START, the text."""
    python = shlex.quote(python_of(one.host))
    root = shlex.quote(ROOT.format(start=START, python=python, script=one.script))
    local = one.host.variables.get("ansible_connection") == "local"
    # As for Ansible, which goes by the name: who logs in as root needs no sudo.
    if one.host.user == "root" or (local and os.geteuid() == 0):
        return LOGIN.format(run=f"/bin/sh -c {root}")
    return LOGIN.format(run=(SUDO_TOLD if sudo_password(one.host) else SUDO).format(root=root))


def has_password(host: Host) -> bool:
    """Whether one logs in with a password, which ssh would ask a person for."""
    return any(host.variables.get(name) for name in ("ansible_password", "ansible_ssh_pass", "ansible_ssh_password"))


def _program(host: Host, command: list[str], text: str, timeout: float, again: bool = True) -> Answer:
    """Run ssh or a local shell. Its errors go to a file: a connection that ssh keeps would hold a pipe open."""
    start = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as program:
            try:
                out = _read(program, text.encode(), timeout)
            except subprocess.TimeoutExpired as late:
                program.kill()
                return Answer(host, trouble=_late(host, command, late, time.monotonic() - start))
            except BaseException:
                program.kill()
                raise
        errors.seek(0)
        error = errors.read().decode(errors="replace")
    if program.returncode == CANNOT_CONNECT and command[0] == "ssh" and BEGIN.encode() not in out:
        if trouble := _why(host, error):
            return Answer(host, trouble=trouble)
        if again:  # a shared connection may end just as it is asked for
            return _program(host, command, text, timeout, again=False)
        return Answer(host, trouble=failed(host, _last(error)))
    return _answer(host, out.decode(errors="replace"), program.returncode, error)


def _read(program: subprocess.Popen[bytes], text: bytes, timeout: float) -> bytes:
    """All that the program says; a TimeoutExpired without output if it has not said a word for a while."""
    try:
        return program.communicate(text, timeout=min(GREETING_S, timeout))[0]
    except subprocess.TimeoutExpired as early:
        if not early.output or timeout <= GREETING_S:
            raise
    return program.communicate(timeout=timeout - GREETING_S)[0]


def _late(host: Host, command: list[str], late: subprocess.TimeoutExpired, seconds: float) -> Trouble:
    """A host that fell silent. A shared connection to it is dead, and would hold up the next call as well."""
    if command[0] == "ssh":
        subprocess.run([*command[:-2], "-O", "exit", host.address], capture_output=True, check=False, timeout=10)
    if not late.output:
        found = _found_by_hand(host)
        if found:
            return found
    return silent(host, seconds)


def _why(host: Host, error: str) -> Trouble | None:
    """Why ssh could not connect, in the words of the connection that can tell; None if that one can."""
    if "timed out" in error:  # to wait once is enough
        return timed_out(host)
    return _found_by_hand(host)


def _found_by_hand(host: Host) -> Trouble | None:
    """What a connection finds that can tell why it fails."""
    from provision.ssh.reach import reach  # noqa: PLC0415 - as above

    return reach([host])[0].trouble


def _answer(host: Host, said: str, code: int, error: str) -> Answer:
    before, _, text = said.partition(BEGIN)
    return Answer(host, text, code, _last(error), judge(host, told(before)))


def _last(error: str) -> str:
    return next((line.strip() for line in reversed(error.splitlines()) if line.strip()), "")
