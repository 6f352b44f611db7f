"""`python -m provision.lab.supervise HOST_DIRECTORY`: keeps one simulated host booted, as mains and firmware would.

Runs in a mount name space and a control group of its own, so that killing the group leaves nothing. Ends when the host
powers itself off or its hardware fails; boots it again when it asked for a reboot.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from provision.errors import ProvisionError
from provision.lab import cgroup, container, disk, process
from provision.lab.container import Spec
from provision.lab.hardware import power_on


def main(directory: Path) -> int:
    """Boot the host kept in `directory` until it stays off; the exit status says whether that was in order."""
    spec = Spec.read(directory)
    host = spec.host(directory)
    base = os.open(spec.base, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(base, fcntl.LOCK_SH)  # for life: a base tree in use is not swept
    root = directory / "root"
    disk.mount(directory / "disk.img", Path(spec.base), directory / "disk", root)
    container.furnish(spec, directory, root)
    _hide_bookkeeping()
    hardware = _serve_hardware(spec, directory)
    with (directory / "console.log").open("ab") as console:
        while True:
            _say("boots")
            power_on(host.state_file)
            status = _boot(spec, directory, console, hardware)
            if status != container.REBOOT:
                break
            while host.hold_file.exists():
                time.sleep(0.1)
    _say("powered itself off" if status == 0 else f"ended with status {status}")
    cgroup.kill(f"{host.group}/machine")
    hardware.kill()
    return 0 if status == 0 else 1


def _boot(spec: Spec, directory: Path, console: IO[bytes], hardware: subprocess.Popen[bytes]) -> int:
    """Run the host until it halts; pull the plug if its hardware stops answering."""
    _clear(spec)
    argv = cgroup.enter(f"{spec.group}/machine", container.nspawn(spec, directory))
    # The memory file system on /tmp is systemd-nspawn's idea; Debian's is a directory on the disk.
    environment = {**os.environ, "SYSTEMD_NSPAWN_TMPFS_TMP": "0"}
    machine = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment)
    leader = directory / "leader"  # PID 1 of the host, for those who come with nsenter
    leader.unlink(missing_ok=True)
    while (status := machine.poll()) is None:
        if not leader.exists() and (pid := spec.host(directory).running_leader()):
            leader.write_text(f"{pid}\n", encoding="ascii")
        if hardware.poll() is not None:
            _say(f"the simulated hardware ended with status {hardware.returncode}; pulling the plug")
            cgroup.kill(f"{spec.group}/machine")
            return machine.wait()
        time.sleep(0.05)
    return status


def _hide_bookkeeping() -> None:
    """Keep what systemd-nspawn notes of its machines in this name space, so that it goes with the host."""
    notes = Path("/run/systemd/nspawn")
    notes.mkdir(parents=True, exist_ok=True)
    process.call(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(notes)])


def _clear(spec: Spec) -> None:
    """Remove what the life before left: stray processes, and the cable, which goes a moment after its host."""
    for part in ("machine", "visitors"):
        cgroup.kill(f"{spec.group}/{part}")
    cable = spec.host(Path()).veth
    deadline = time.monotonic() + 10
    while Path("/sys/class/net", cable).exists() and time.monotonic() < deadline:
        process.call(["ip", "link", "delete", cable], check=False)
        time.sleep(0.02)


def _serve_hardware(spec: Spec, directory: Path) -> subprocess.Popen[bytes]:
    """Mount the host's simulated hardware at `fs`, and wait until it is there."""
    mountpoint = directory / "fs"
    mountpoint.mkdir(exist_ok=True)
    argv = [sys.executable, "-m", "provision.lab.hardware.fusefs", str(directory / "hw/state.json"), str(mountpoint)]
    server = subprocess.Popen(cgroup.enter(f"{spec.group}/hardware", argv), stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not mountpoint.is_mount():
        if server.poll() is not None or time.monotonic() > deadline:
            server.kill()
            raise ProvisionError(f"The simulated hardware did not start: `{' '.join(argv)}`")
        time.sleep(0.02)
    return server


def _say(what: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), what, file=sys.stderr, flush=True)  # noqa: T201 (its log)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except ProvisionError as error:
        sys.exit(str(error))
