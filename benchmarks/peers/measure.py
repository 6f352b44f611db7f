"""Running a command and saying what it took: wall time, the controller's processor and memory, the hosts' processor."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

BEGAN = time.monotonic()
CGROUPS = Path("/sys/fs/cgroup")


class OverError(Exception):
    """A command, or a part of the benchmark, took longer than it may, or failed; the message says which and how."""


def interrupted(_number: int, _frame: object) -> None:
    """What SIGTERM does to a benchmark: it ends it as Ctrl-C does, in order."""
    raise KeyboardInterrupt


def say(text: str) -> None:
    """A line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - BEGAN:6.0f} s] {text}", flush=True)


@dataclass(frozen=True)
class Took:
    """What a command took. `controller` and `hosts` are seconds of processor; `peak` is MiB, 0 if nobody looked."""

    seconds: float
    controller: float
    hosts: float
    peak: float
    code: int
    out: str

    @property
    def waiting(self) -> float:
        """Seconds of the wall time in which the machine's processors had nothing of this to do."""
        return max(0.0, self.seconds - (self.controller + self.hosts) / (os.cpu_count() or 1))

    def __str__(self) -> str:
        parts = f"controller CPU {self.controller:.1f} s, hosts' CPU {self.hosts:.1f} s, waiting {self.waiting:.1f} s"
        return f"{self.seconds:.2f} s ({parts}" + (f", peak {self.peak:.0f} MiB)" if self.peak else ")")


@dataclass
class Deadline:
    """When a part of the benchmark must have ended."""

    seconds: float
    began: float = 0.0

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    def left(self) -> float:
        """Seconds that are left. Raises OverError if none are."""
        left = self.began + self.seconds - time.monotonic()
        if left <= 0:
            raise OverError(f"the part took longer than its {self.seconds:.0f} s")
        return left


def run(
    argv: Sequence[str | Path],
    env: Mapping[str, str],
    deadline: Deadline,
    hosts: Path | None = None,
    memory: bool = False,
    codes: Sequence[int] = (0,),
) -> Took:
    """Run a command to its end; `hosts` is the control group of the fleet. Raises OverError on another exit code."""
    words = [str(word) for word in argv]
    limit, cpu, start = deadline.left(), cpu_of(hosts), time.monotonic()
    with TemporaryFile() as out:
        # The output goes to a file: a shared SSH connection that outlives the command would hold a pipe open.
        process = subprocess.Popen(
            words, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        peak = Peak(process.pid) if memory else None
        code, usage = _end(process, limit)
        seconds = time.monotonic() - start
        out.seek(0)
        text = out.read().decode(errors="replace")
    took = Took(seconds, usage, cpu_of(hosts) - cpu, peak.end() if peak else 0.0, code, text)
    if code not in codes:
        tail = "\n".join(text.splitlines()[-25:])
        raise OverError(f"{' '.join(words)} ended with {code} after {seconds:.0f} s:\n{tail}")
    return took


def _end(process: subprocess.Popen[bytes], limit: float) -> tuple[int, float]:
    """Wait for the process, and for what it waited for itself: exit code and seconds of processor."""
    timer = threading.Timer(limit, _kill, [process.pid])
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        _kill(process.pid)
        os.wait4(process.pid, 0)
        raise
    finally:
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_utime + usage.ru_stime


def _kill(pid: int) -> None:
    """End a command and its children, first in order."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(pid, number)
        except ProcessLookupError:
            return
        time.sleep(3)


def cpu_of(group: Path | None) -> float:
    """Seconds of processor that a control group has used."""
    if group is None:
        return 0.0
    lines = (group / "cpu.stat").read_text(encoding="ascii").splitlines()
    return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6


def fleet_group(fleet: str) -> Path | None:
    """The control group of a fleet's hosts, in the hierarchy that counts processor time."""
    found = [path for path in CGROUPS.glob(f"**/provision-lab/{fleet}/hosts") if (path / "cpu.stat").exists()]
    return found[0] if found else None


def come_first(fleet: str, host: str) -> None:
    """Let a host of a fleet run whenever it has something to do, as if it had a processor of its own."""
    for name, share in (("cpu.shares", 10240), ("cpu.weight", 1000)):  # of control groups of version 1 and 2: ten times
        for path in CGROUPS.glob(f"**/provision-lab/{fleet}/hosts/{host}/{name}"):
            path.write_text(str(share), encoding="ascii")


class Peak:
    """Looks at the memory of a process and all its descendants while it runs; what several share counts once."""

    def __init__(self, pid: int) -> None:
        self._pid, self._highest, self._ended = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> float:
        """The highest sum that was seen, in MiB."""
        self._ended.set()
        self._thread.join()
        return self._highest / 1024

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self._highest = max(self._highest, sum(_proportional(pid) for pid in _descendants(self._pid)))


def _descendants(top: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [top]
    for pid in found:
        found += parents.get(pid, [])
    return found


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
