"""A control group of its own, in every hierarchy, for whatever the lab starts.

Without one, systemd in a host would hold, list and kill the processes of its neighbours. With one, "everything this
fleet started" is a question that the kernel answers: `kill` ends it at one stroke, and no process id is ever guessed.
Groups are named by a relative path such as `<fleet>/node-1/machine`; all lie below `provision-lab`.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from provision.errors import LabError

TOP = "provision-lab"
_ENTER = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 70; shift; done; shift; exec "$@"'


@dataclass(frozen=True)
class Hierarchy:
    """One mounted tree of control groups: `unified` is version 2, the others are controllers of version 1."""

    mountpoint: Path
    unified: bool
    options: frozenset[str]


@functools.cache
def hierarchies() -> tuple[Hierarchy, ...]:
    """Every hierarchy of the machine: version 1, version 2, or both at once."""
    found: dict[str, Hierarchy] = {}
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mountpoint, kind, options, *_ = line.split()
        if kind in {"cgroup", "cgroup2"} and mountpoint.startswith("/sys/fs/cgroup"):
            found[mountpoint] = Hierarchy(Path(mountpoint), kind == "cgroup2", frozenset(options.split(",")))
    if not any(each.unified for each in found.values()):
        raise LabError(
            "No cgroup v2 hierarchy is mounted below /sys/fs/cgroup, and the lab needs one to end its hosts."
        )
    return tuple(found.values())


def _unified() -> Path:
    return next(each.mountpoint for each in hierarchies() if each.unified)


def make(name: str) -> None:
    """Make the group `name` and its parents in every hierarchy."""
    for hierarchy in hierarchies():
        group = hierarchy.mountpoint
        for part in (TOP, *name.split("/")):
            parent, group = group, group / part
            if hierarchy.unified:
                _delegate(parent)
            group.mkdir(exist_ok=True)
            if "cpuset" in hierarchy.options:
                _inherit_cpuset(parent, group)


def _delegate(parent: Path) -> None:
    """Let children of `parent` be limited; the top of the machine is left as it is."""
    if parent == _unified():
        return
    controllers = (parent / "cgroup.controllers").read_text(encoding="ascii").split()
    (parent / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in controllers), encoding="ascii")


def _inherit_cpuset(parent: Path, group: Path) -> None:
    """A new cpuset of version 1 holds no processor and no memory, and nothing can enter it."""
    for knob in ("cpuset.cpus", "cpuset.mems"):
        if not (group / knob).read_text(encoding="ascii").strip():
            (group / knob).write_text((parent / knob).read_text(encoding="ascii"), encoding="ascii")
    # What systemd makes inside the host must be usable as well.
    (group / "cgroup.clone_children").write_text("1", encoding="ascii")


def limit_memory(name: str, limit: int) -> None:
    """Hold everything in the group `name` to `limit` bytes of memory."""
    for hierarchy in hierarchies():
        for knob in ("memory.max", "memory.limit_in_bytes"):
            path = hierarchy.mountpoint / TOP / name / knob
            if path.exists():
                path.write_text(str(limit), encoding="ascii")


def memory_used(name: str) -> int | None:
    """Bytes of memory charged to the group `name`; None when it does not exist."""
    for hierarchy in hierarchies():
        for knob in ("memory.current", "memory.usage_in_bytes"):
            with contextlib.suppress(FileNotFoundError):
                return int((hierarchy.mountpoint / TOP / name / knob).read_text(encoding="ascii"))
    return None


def enter(name: str, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` inside the group `name`, which must exist."""
    groups = [str(each.mountpoint / TOP / name) for each in hierarchies()]
    return ["sh", "-c", _ENTER, "sh", *groups, "--", *argv]


def processes(name: str) -> list[int]:
    """The process ids in the group `name` and below it, as the machine numbers them."""
    return [pid for group in _tree(_unified() / TOP / name) for pid in _members(group)]


def _members(group: Path) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(line) for line in (group / "cgroup.procs").read_text(encoding="ascii").split()]
    return []


def _tree(group: Path) -> Iterator[Path]:
    """`group` and the groups below it, deepest first, as far as they still exist."""
    with contextlib.suppress(FileNotFoundError):
        for child in sorted(group.iterdir()):
            if child.is_dir():
                yield from _tree(child)
        yield group


def kill(name: str, *, timeout: float = 30) -> None:
    """Kill every process in the group `name` and below it, and wait until none is left (`timeout` in seconds)."""
    group = _unified() / TOP / name
    deadline = time.monotonic() + timeout
    while group.exists():
        with contextlib.suppress(FileNotFoundError):
            (group / "cgroup.kill").write_text("1", encoding="ascii")
        if not processes(name):
            return
        if time.monotonic() > deadline:
            left = ", ".join(map(str, processes(name)))
            raise LabError(f"Processes {left} of the lab do not die. `ps -o pid,stat,wchan,cmd {left}` says why.")
        time.sleep(0.01)


def remove(name: str, *, timeout: float = 10) -> None:
    """Remove the group `name` and those below it in every hierarchy; their processes must be gone."""
    for hierarchy in hierarchies():
        for group in _tree(hierarchy.mountpoint / TOP / name):
            _rmdir(group, timeout)
        with contextlib.suppress(OSError):  # other fleets may be there
            (hierarchy.mountpoint / TOP).rmdir()


def _rmdir(group: Path, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while group.exists():
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:  # busy for a moment after its last process died
            if time.monotonic() > deadline:
                raise LabError(f"The control group {group} cannot be removed: {error.strerror}.") from error
            time.sleep(0.02)
