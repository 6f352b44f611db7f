"""What holds the lease on one host: a small process there, at the end of one SSH session, that lives on our beats."""

from __future__ import annotations

import contextlib
import json
import select
import shlex
import subprocess
import time
from typing import Any, Protocol

from provision.converge.identity import Holder
from provision.inventory import Host
from provision.ssh.call import START, Call, has_password, login
from provision.ssh.fit import python_of, sudo_password
from provision.ssh.options import ssh_command

PATH = "/run/provision/lease"
LIMIT_S = 60  # without a beat, after which a holder ends
ANSWER_S = 30  # for the first word of a holder
# Run by the host's Python 3.9 or later as root, with the path and the limit. The kernel frees the lock when the process
# ends, however it ends. An orderly end empties the file; so a text that nobody holds is that of a run that died. A
# refusal takes a moment: the holder of a run that was killed just now is about to end.
HOLDER = """\
import fcntl, json, os, signal, sys, time
path, limit = sys.argv[1], int(sys.argv[2])
with open("/proc/sys/kernel/random/boot_id") as file:
    boot = file.read().strip()
def say(word, text=""):
    print(json.dumps({"lease": word, "text": text, "boot_id": boot}), flush=True)
mine = sys.stdin.readline()
os.makedirs(os.path.dirname(path), exist_ok=True)
file = open(path, "a+")
def read():
    file.seek(0)
    return file.read()
patience = time.monotonic() + 2
while True:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except BlockingIOError:
        if time.monotonic() > patience or read() == mine:
            say("refused", read())
            sys.exit()
    time.sleep(0.1)
signal.alarm(limit)
before = read()
file.truncate(0)
file.write(mine)
file.flush()
say("held", before)
for line in sys.stdin:
    signal.alarm(limit)
    if line == "end\\n":
        file.truncate(0)
        break
    say("beat")
"""


class _Pipe(Protocol):
    """Both directions of a session."""

    def fileno(self) -> int: ...

    def read(self) -> bytes: ...

    def write(self, data: bytes) -> None: ...

    def close(self, patience: float) -> None: ...


class Session:
    """One holder. Raises OSError or EOFError where its host has gone."""

    def __init__(self, host: Host, holder: Holder) -> None:
        self.host, self.mine = host, holder.text()
        self.heard = time.monotonic()
        self._rest = b""
        self._pipe = _open(host)
        password = sudo_password(host)
        preamble = f"{password}\n{START}\n" if password else f"{START}\n"
        with contextlib.suppress(OSError):  # reading tells as well that it has gone
            self._pipe.write((preamble + self.mine).encode())

    def fileno(self) -> int:
        """For `poll`."""
        return self._pipe.fileno()

    def first(self, timeout: float = ANSWER_S) -> dict[str, str]:
        """Its answer, `held` or `refused`; raises TimeoutError if none comes."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self], [], [], left)
            if ready and (said := self.said()):
                return said[0]
        raise TimeoutError(f"no answer within {timeout:.0f} s")

    def said(self) -> list[dict[str, str]]:
        """What it has said since it was last asked; call this when there is something to read."""
        data = self._pipe.read()
        if not data:
            raise EOFError("the session has ended")
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = [_word(line) for line in lines]
        self.heard = time.monotonic()
        return [word for word in found if word]

    def beat(self) -> None:
        """Let it live on."""
        with contextlib.suppress(OSError):
            self._pipe.write(b"beat\n")

    def end(self) -> None:
        """Have it give the lease back; returns at once, `close` makes sure."""
        with contextlib.suppress(OSError):
            self._pipe.write(b"end\n")

    def close(self, patience: float = 0.0) -> None:
        """End the session, and with it the holder; give it so many seconds to end by itself."""
        self._pipe.close(patience)


def _word(line: bytes) -> dict[str, str] | None:
    """A line of the holder's, among whatever else a login prints."""
    try:
        word = json.loads(line)
    except ValueError:
        return None
    return word if isinstance(word, dict) and "lease" in word else None


def _open(host: Host) -> _Pipe:
    program = f"exec {shlex.quote(python_of(host))} -c {shlex.quote(HOLDER)} {PATH} {LIMIT_S}"
    command = "/bin/sh -c " + shlex.quote(login(Call(host, program)))
    return _Channel(host, command) if has_password(host) else _Program([*ssh_command(host), command])


class _Program:
    """OpenSSH, over the connection that Ansible uses. Ctrl-C at the terminal is not for it."""

    def __init__(self, command: list[str]) -> None:
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        self._program = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=nothing, bufsize=0, start_new_session=True
        )

    def fileno(self) -> int:
        return int(self._out.fileno())

    def read(self) -> bytes:
        return bytes(self._out.read(65536) or b"")

    def write(self, data: bytes) -> None:
        self._in.write(data)

    def close(self, patience: float) -> None:
        with contextlib.suppress(OSError):
            self._in.close()
        try:
            self._program.wait(patience)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()
        self._out.close()

    @property
    def _in(self) -> Any:  # noqa: ANN401 - a pipe; there is one, as asked for above
        return self._program.stdin

    @property
    def _out(self) -> Any:  # noqa: ANN401
        return self._program.stdout


class _Channel:
    """A connection of its own, for a login by password, which OpenSSH would ask a person for."""

    def __init__(self, host: Host, command: str) -> None:
        from provision.ssh.connect import connection  # noqa: PLC0415 - to load paramiko takes longer than a login

        self._link = connection(host)
        try:
            self._link.open()
            self._channel = self._link.transport.open_session(timeout=ANSWER_S)
            self._channel.exec_command(command)
        except Exception as error:
            self._link.close()
            raise OSError(str(error)) from error  # paramiko has errors of many kinds; the host has gone in each case

    def fileno(self) -> int:
        return int(self._channel.fileno())

    def read(self) -> bytes:
        return bytes(self._channel.recv(65536))

    def write(self, data: bytes) -> None:
        self._channel.sendall(data)

    def close(self, patience: float) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._channel.shutdown_write()
            self._channel.settimeout(patience)
            while self._channel.recv(65536):
                pass
        self._link.close()
