"""What the fleets of all users of this machine share: its kernel's knobs, and the choice of networks."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

_RECORD = Path("/run/provision-lab")  # each knob's value before the first fleet, to go back to after the last
_KNOBS = {
    "net/ipv4/ip_forward": 1,  # hosts reach the world through the machine
    "fs/inotify/max_user_instances": 8192,  # 128 by default, which 14 hosts use up: systemd takes 9 in each
    "kernel/pid_max": 4194304,  # 32768 by default on few processors; each host runs hundreds of threads
}


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Only one process of the machine at a time."""
    with _RECORD.with_suffix(".lock").open("w", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def raise_knobs(sys: Path = Path("/proc/sys"), record: Path = _RECORD) -> None:
    """Give the kernel's knobs at least the values that hosts need, and note what they were. Call it under `lock`."""
    for knob, least in _KNOBS.items():
        before = (sys / knob).read_text(encoding="ascii").strip()
        if int(before) >= least:
            continue
        note = record / knob.replace("/", ".")
        record.mkdir(exist_ok=True)
        if not note.exists():
            note.write_text(before, encoding="ascii")
        (sys / knob).write_text(str(least), encoding="ascii")


def restore_knobs(sys: Path = Path("/proc/sys"), record: Path = _RECORD) -> None:
    """Give the knobs the values back that they had before the first fleet. Call it under `lock`, after the last."""
    for note in sorted(record.glob("*")):
        (sys / note.name.replace(".", "/")).write_text(note.read_text(encoding="ascii"), encoding="ascii")
        note.unlink()
    if record.exists():
        record.rmdir()
