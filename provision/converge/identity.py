"""Who runs this: user, controller, process, and where the user's own machine is. For journal, lock and leases."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

STARTED = 19  # field of /proc/PID/stat after the program's name: when it started, in clock ticks since boot
PARENT = 1


@dataclass(frozen=True)
class Identity:
    """A process that runs, or ran, this command. `origin`: the address that its user came from by SSH, or a terminal.

    A process id means a process only together with the boot and the moment at which it started.
    """

    user: str
    controller: str
    pid: int
    process_started: int
    boot_id: str
    origin: str

    @property
    def lives(self) -> bool:
        """Whether that process runs, as far as this machine can tell: those of others it does not know."""
        here = self.controller == os.uname().nodename and self.boot_id == _boot_id()
        return here and _started(self.pid) == self.process_started

    def __str__(self) -> str:
        origin = f", from {self.origin}" if self.origin else ""
        return f"{self.user}@{self.controller} (process {self.pid}{origin})"


@dataclass(frozen=True)
class Holder:
    """Who holds something, as written into it: a run, since when (RFC 3339), by which command."""

    run: str
    who: Identity
    since: str
    command: str = ""

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps({"run": self.run, "since": self.since, "command": self.command, **asdict(self.who)}) + "\n"

    def __str__(self) -> str:
        run = f"run {self.run} of " if self.run else ""
        return f"{run}{self.who}, since {clock(self.since)}"


def identify() -> Identity:
    """The process that asks."""
    pid = os.getpid()
    return Identity(_user(), os.uname().nodename, pid, _started(pid), _boot_id(), _origin(pid))


def identity(facts: Mapping[str, object]) -> Identity:
    """The identity among other facts, as JSON gives them; raises KeyError, TypeError or ValueError if there is none."""
    pid, started = int(str(facts["pid"])), int(str(facts["process_started"]))
    user, controller, boot_id, origin = (str(facts[name]) for name in ("user", "controller", "boot_id", "origin"))
    return Identity(user, controller, pid, started, boot_id, origin)


def holder(text: str) -> Holder | None:
    """What `Holder.text` wrote; None for a text that is empty or torn."""
    try:
        facts = json.loads(text)
        return Holder(str(facts["run"]), identity(facts), str(facts["since"]), str(facts.get("command", "")))
    except (ValueError, KeyError, TypeError):
        return None


def clock(stamp: str) -> str:
    """A stored time as a person here reads it: the time alone if it is today's."""
    try:
        when = datetime.fromisoformat(stamp).astimezone()
    except ValueError:
        return stamp
    today = when.date() == datetime.now().astimezone().date()
    return when.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def _user() -> str:
    """The person: sudo leaves the name of who called it."""
    login = os.environ.get("SUDO_USER")
    return login if login and os.geteuid() == 0 else getpass.getuser()


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[STARTED]) if len(stat) > STARTED and stat[0] != "Z" else 0


def _origin(pid: int) -> str:
    """Sudo and tmux may hide where the user came from; a process further up still knows."""
    for variables in _environments(pid):
        if connection := variables.get("SSH_CONNECTION"):
            return connection.split()[0]
    for descriptor in (0, 1, 2):
        with contextlib.suppress(OSError):
            return os.ttyname(descriptor).removeprefix("/dev/")
    return ""


def _environments(pid: int) -> Iterator[Mapping[str, str]]:
    """Of this process and those that it descends from, as far as they may be read."""
    yield os.environ
    while pid > 1:
        stat = _stat(pid)
        pid = int(stat[PARENT]) if stat else 0
        try:
            text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        except OSError:
            return
        yield dict(item.partition("=")[::2] for item in text.split("\0"))
