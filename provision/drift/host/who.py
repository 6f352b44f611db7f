"""Who or what made a change, where the host knows: what sudo, dpkg, systemd and the file system wrote down.

Only what is known is said; a clause that would be a guess is left out.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ansible.module_utils import provision_host

from provision.drift.host import packages, words

BUDGET_S = 5.0  # for all findings of a stage together
OLDEST_S = 14 * words.DAY
COMMANDS = 2000  # of sudo, the newest
NEAR_S = 3600  # a file that is written this long after a command was started may still be that command's work
READS = (
    "cat less more head tail ls stat grep egrep zgrep find file diff md5sum sha256sum journalctl ps du df wc id which "
    "tar rsync scp dpkg-query apt-cache apt-config"
)
READERS = frozenset(READS.split())
READING = re.compile(
    r"^(systemctl( -\S+)* (status|show|cat|is-\S+|list-\S+)|sysctl (?!.*(-w|=|-p|--system))|dpkg (-[lLsS]|--\w*list)"
    r"|apt-mark show|nvidia-smi( -(q|L|a)\b.*| --query\S*.*| topo.*)?$)"
)


class Command(NamedTuple):
    """A command that a user had sudo run as root."""

    at: float
    user: str
    line: str


class Witness:
    """What this host knows about the time since a receipt was sealed. Each source is read once, when first needed."""

    def __init__(self, sealed: float) -> None:
        self.since = max(sealed, time.time() - OLDEST_S)
        self.deadline = time.monotonic() + BUDGET_S
        self._commands: list[Command] | None = None

    def who(self, change: Mapping[str, Any]) -> str | None:
        """A short clause on a change; None where nobody wrote anything down, or when there is no more time."""
        if time.monotonic() > self.deadline:
            return None
        try:
            return next(filter(None, self._clauses(change)), None)
        except (OSError, ValueError, provision_host.HostError):
            return None

    def _clauses(self, change: Mapping[str, Any]) -> Iterator[str | None]:
        names, listed = names_of(change), package_names(change)
        if listed:
            yield packages.who(listed, self.since)
        changed = _changed_at(change["resource"])
        yield self._by_command(names, changed, str(change["before"]).strip())
        if change["resource"].endswith(UNIT_KINDS):
            yield self._by_unit(change["resource"])
        if changed is not None:
            yield self._by_file(change["resource"])

    def _by_command(self, names: list[str], changed: float | None, value: str) -> str | None:
        """The last command that names the resource, and could have made the change when it was made."""
        found = [command for command in self.commands() if _is_about(command.line, names)]
        if set(names) & {flag for flags in GPU_FLAGS for flag in flags}:
            found = [command for command in found if "nvidia-smi" in command.line]
        if changed is not None:
            found = [command for command in found if command.at - 2 <= changed <= command.at + NEAR_S]
        exact = [command for command in found if value and "\n" not in value and _is_about(command.line, [value])]
        for command in (exact or found)[:1]:
            return f"by {words.user(command.user)} with `{words.command(command.line)}`, {words.ago(command.at)}"
        return None

    def _by_unit(self, unit: str) -> str | None:
        """When systemd saw a unit's last change of state."""
        # By the clock since boot, which every systemd tells in microseconds: 249 writes no other time for machines.
        asked = ("ActiveState", "Result", "StateChangeTimestampMonotonic")
        shown = provision_host.run(["systemctl", "show", unit, *(f"--property={name}" for name in asked)], check=False)
        said = dict(line.split("=", 1) for line in shown.out.splitlines() if "=" in line)
        since_boot = int(said.get("StateChangeTimestampMonotonic") or 0) / 1e6
        at = time.time() - time.monotonic() + since_boot if since_boot else 0.0
        if at < self.since or said.get("ActiveState") not in ENDED:
            return None
        why = "" if said.get("Result") == "success" else f" ({said.get('Result')})"
        return f"{ENDED[said['ActiveState']]}{why} {words.ago(at)}"

    def _by_file(self, path: str) -> str | None:
        """When a file, or the directory that it is missing in, was last changed, and whose it is now."""
        try:
            seen = os.lstat(path)
        except FileNotFoundError:
            at = os.stat(os.path.dirname(path)).st_mtime
            return f"its directory changed {words.ago(at)}" if at > self.since else None
        if max(seen.st_mtime, seen.st_ctime) <= self.since:
            return None
        owned = f", now owned by {words.owner(seen.st_uid)}" if seen.st_uid else ""
        if seen.st_mtime <= self.since:  # only what stands about the file is new: mode, owner, or its place
            return f"mode, owner or name changed {words.ago(seen.st_ctime)}{owned}"
        return f"file changed {words.ago(seen.st_mtime)}{owned}"

    def commands(self) -> list[Command]:
        """What users had sudo run as root since the receipt, the newest first."""
        if self._commands is None:
            self._commands = list(_commands(self.since, max(1.0, self.deadline - time.monotonic())))
        return self._commands


UNIT_KINDS = (".service", ".timer", ".socket", ".mount", ".swap", ".target")
# The options of nvidia-smi that set the same thing.
GPU_FLAGS = (
    ("-pm", "--persistence-mode"),
    ("-pl", "--power-limit"),
    ("-c", "--compute-mode"),
    ("-e", "--ecc-config"),
    ("-mig", "--multi-instance-gpu"),
    ("-lgc", "-rgc", "--lock-gpu-clocks", "--reset-gpu-clocks"),
    ("-lmc", "-rmc", "--lock-memory-clocks", "--reset-memory-clocks"),
)
# What provision and Ansible have sudo run: it names many things, and changes none behind anyone's back.
OURS = re.compile(r"provision\.sudo=|/run/provision/|/opt/provision/bin/provision-verify|BECOME-SUCCESS-")
ENDED = {"inactive": "stopped", "failed": "failed", "activating": "began to start"}


def names_of(change: Mapping[str, Any]) -> list[str]:
    """The words by which a command would name what changed."""
    resource = str(change["resource"])
    listed = package_names(change)
    if listed:
        return listed
    if resource.startswith("nvidia-smi "):
        return next((list(flags) for flags in GPU_FLAGS if resource.split()[1] in flags), [])
    if resource.endswith(UNIT_KINDS):
        return [resource, resource.rsplit(".", 1)[0]]
    if re.fullmatch(r"[a-z][\w-]*(\.[\w/-]+)+", resource):  # a sysctl
        return [resource, resource.replace(".", "/")]
    return [resource] if len(resource) > 3 else []  # noqa: PLR2004 - a word, not a syllable


def package_names(change: Mapping[str, Any]) -> list[str]:
    """The packages that a change is about, which its `before` lists one a line."""
    is_of_packages = "package" in change["resource"] or change["resource"] == "apt holds"
    lines = str(change["before"]).splitlines() if is_of_packages else []
    return [line.partition(":")[0] for line in lines if ": " in line]


def _changed_at(path: str) -> float | None:
    """When a file was last changed; None for what is no file, or has no such time, as all that the kernel shows."""
    if not path.startswith("/") or path.startswith(("/proc/", "/sys/")):
        return None
    try:
        return os.lstat(path).st_ctime
    except OSError:
        folder = os.path.dirname(path)
        return os.stat(folder).st_ctime if os.path.isdir(folder) else None


def _is_about(line: str, names: list[str]) -> bool:
    """Whether a command names one of these, and does more than read."""
    program, _, rest = line.partition(" ")
    bare = f"{os.path.basename(program)} {rest}".strip()
    if os.path.basename(program) in READERS or READING.search(bare):
        return False
    return any(re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", line) for name in names)


def _commands(since: float, timeout_s: float) -> Iterator[Command]:
    argv = ["journalctl", "--quiet", "--no-pager", "--reverse", f"--lines={COMMANDS}", "--output=json"]
    argv += ["--output-fields=MESSAGE", "--identifier=sudo", f"--since=@{since:.0f}"]
    for line in provision_host.run(argv, check=False, timeout_s=timeout_s).out.splitlines():
        entry = json.loads(line)
        found = re.search(r"^\s*(\S+) : .*?\bUSER=root ;.*? COMMAND=(.*)$", str(entry.get("MESSAGE")))
        if found and not OURS.search(found[2]):
            yield Command(int(entry["__REALTIME_TIMESTAMP"]) / 1e6, found[1], _inner(found[2]))


def _inner(line: str) -> str:
    """The command that a shell was started for, if that is what the command is."""
    shell = re.match(r"\S*/(?:ba|da)?sh -c (.*)$", line)
    if not shell:
        return line
    try:
        return shlex.split(shell[1])[0] if shell[1][:1] in "'\"" else shell[1]
    except (ValueError, IndexError):
        return shell[1]
