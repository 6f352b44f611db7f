"""One simulated host, as the rest of the lab sees it."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from provision.errors import LabError
from provision.lab import cgroup, process

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class LabHost:
    """A host of a fleet: where it is kept, how it is reached, and its power button.

    `directory` holds everything of the host; `machine` is its short name, unique on this machine; `group` its control
    group; `profile` the hardware that it simulates.
    """

    name: str
    address: str
    directory: Path
    machine: str
    group: str
    profile: str

    @property
    def state_file(self) -> Path:
        """The state of the host's simulated hardware; inside the host it is `/.lab/hw/state.json`."""
        return self.directory / "hw" / "state.json"

    @property
    def veth(self) -> str:
        """The machine's end of the host's network cable."""
        return f"vb-{self.machine}"

    @property
    def supervisor(self) -> int | None:
        """The process that keeps the host booted, if the host is on."""
        return next(iter(cgroup.processes(f"{self.group}/supervisor")), None)

    @property
    def on(self) -> bool:
        """Whether the host has power: it may still be booting, or hang."""
        return self.supervisor is not None

    @property
    def root(self) -> Path:
        """The host's root directory, as a path of this machine. Only while the host is on."""
        # The host's mounts live in the name space of its supervisor, and vanish with it.
        return Path(f"/proc/{self._require(self.supervisor)}/root{self.directory}/root")

    @property
    def hold_file(self) -> Path:
        """While this file exists, the host does not come back from a reboot."""
        return self.directory / "hold"

    def leader(self) -> int:
        """The process id, on this machine, of the host's PID 1."""
        return self._require(self.running_leader())

    def running_leader(self) -> int | None:
        """As `leader`, or None while the host is off or between two boots."""
        return next((pid for pid in cgroup.processes(f"{self.group}/machine") if _is_init(pid)), None)

    def run(
        self,
        argv: Sequence[str],
        check: bool = True,
        input: str | None = None,  # noqa: A002 (as in subprocess)
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root inside the host, without SSH; a non-zero status is an error if `check`."""
        done = process.call(self._inside(argv), stdin=input, check=False)
        if check and done.returncode:
            said = done.stderr.strip() or done.stdout.strip() or "nothing was printed"
            raise LabError(f"{self.name}: `{' '.join(argv)}` ended with status {done.returncode}: {said}")
        return done

    def start(self, argv: Sequence[str]) -> None:
        """Leave a command running as root inside the host; it dies with the host, at the latest."""
        devnull = subprocess.DEVNULL
        subprocess.Popen(self._inside(argv), stdin=devnull, stdout=devnull, stderr=devnull, start_new_session=True)

    def _inside(self, argv: Sequence[str]) -> list[str]:
        spaces = ["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd"]
        inside = ["env", "-i", f"PATH={_PATH}", "LC_ALL=C", "HOME=/root", *argv]
        return cgroup.enter(
            f"{self.group}/visitors", ["nsenter", "--target", str(self.leader()), *spaces, "--", *inside]
        )

    def power_off(self) -> None:
        """Pull the plug: every process of the host is killed at once. Its disk keeps what was written."""
        cgroup.kill(self.group)

    def power_on(self) -> None:
        """Press the power button; returns as soon as the host starts to boot."""
        from provision.lab import container  # noqa: PLC0415 (the container knows hosts)

        container.power_on(self)

    def _require(self, pid: int | None) -> int:
        if pid is None:
            raise LabError(f"{self.name} is off. Start it: provision lab reboot {self.name}")
        return pid


def _is_init(pid: int) -> bool:
    """Whether a process is number 1 of a name space of processes directly below this machine's."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False
    numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
    return numbers == [str(pid), "1"]
