"""What one simulated host is made of, and how it is switched on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from provision.errors import LabError
from provision.lab import cgroup, disk, hardware, process
from provision.lab.host import LabHost

REBOOT = 133  # the status of systemd-nspawn when the host asked for a reboot
OPS_UID = 1000
_FILE = "host.json"
PARTS = ("supervisor", "hardware", "machine", "visitors")  # the control groups of a host


@dataclass(frozen=True)
class Bind:
    """A directory of the machine that the host sees, at the same or another path."""

    source: str
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Spec:
    """Everything that a host is made from. Written to `host.json`; the supervisor needs nothing else.

    `disk_size` and `memory` are bytes; `memory` None means no limit but the machine's.
    """

    name: str
    machine: str
    group: str
    profile: str
    address: str
    prefix: int
    gateway: str
    bridge: str
    mtu: int
    base: str
    disk_size: int
    memory: int | None
    authorized_key: str
    binds: tuple[Bind, ...]

    def write(self, directory: Path) -> None:
        """Write `host.json` into the host's directory, whole or not at all."""
        new = directory / f".{_FILE}.new"
        new.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        new.replace(directory / _FILE)

    @staticmethod
    def read(directory: Path) -> Spec:
        """The inverse of `write`."""
        entry = json.loads((directory / _FILE).read_text(encoding="utf-8"))
        return Spec(**{**entry, "binds": tuple(Bind(**each) for each in entry["binds"])})

    def host(self, directory: Path) -> LabHost:
        """The host that this describes, kept in `directory`."""
        return LabHost(self.name, self.address, directory, self.machine, self.group, self.profile)


def read(directory: Path) -> LabHost | None:
    """The host that is kept in `directory`; None when its making was interrupted."""
    return Spec.read(directory).host(directory) if (directory / _FILE).exists() else None


def power_on(host: LabHost) -> None:
    """Start the host's supervisor, which boots it. What an earlier life left behind is removed first."""
    if host.on:
        return
    cgroup.kill(host.group)
    disk.wait_until_free(host.directory / "disk.img")
    for part in PARTS:
        cgroup.make(f"{host.group}/{part}")
    spec = Spec.read(host.directory)
    if spec.memory is not None:
        cgroup.limit_memory(host.group, spec.memory)
    with (host.directory / "supervisor.log").open("ab") as log:
        # `slave`: what is mounted here stays here and goes when the last process goes.
        apart = ["unshare", "--mount", "--propagation", "slave"]
        supervisor = [*apart, sys.executable, "-m", "provision.lab.supervise", str(host.directory)]
        child = subprocess.Popen(
            cgroup.enter(f"{host.group}/supervisor", supervisor),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
    while not host.on and child.poll() is None:
        time.sleep(0.005)


def nspawn(spec: Spec, directory: Path) -> list[str]:
    """The command that boots the host from `directory/root` and lasts until it halts or asks for a reboot."""
    binds = [
        f"--bind={directory}/hw:/.lab/hw",
        f"--bind={directory}/fs:/.lab/fs",
        f"--bind={directory}/disk/data:/data",
    ]
    binds += [f"--bind{'' if each.writable else '-ro'}={each.source}:{each.target}" for each in spec.binds]
    # The limits that PID 1 of a Debian server starts with, whatever this machine's own were raised or cut to.
    limits = [
        "--rlimit=RLIMIT_NOFILE=1024:1048576",
        "--rlimit=RLIMIT_MEMLOCK=infinity",
        "--rlimit=RLIMIT_CORE=0:infinity",
    ]
    return [
        "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no", "--console=pipe",
        "--link-journal=no", "--resolv-conf=off", "--timezone=off",
        f"--machine={spec.machine}", f"--hostname={spec.name}", f"--directory={directory}/root",
        f"--network-bridge={spec.bridge}", "--tmpfs=/dev/shm:mode=1777,size=50%", *limits, *binds,
    ]  # fmt: skip


def furnish(spec: Spec, directory: Path, root: Path) -> None:
    """Write what makes the base tree this host: its name, address, keys. Done once in the life of a disk."""
    done = directory / "disk" / "furnished"
    if done.exists():
        return
    resolv = (directory.parent.parent / "resolv.conf").read_text(encoding="utf-8")
    identify(root, spec.name, directory, spec.authorized_key, resolv)
    write(root / "etc/systemd/network/10-host0.network", _network(spec))
    done.touch()


def identify(root: Path, name: str, directory: Path, authorized_key: str, resolv: str) -> None:
    """Make a copied tree a host of its own: its name, its name servers, the keys of `directory`, who may log in."""
    write(root / "etc/hostname", f"{name}\n")
    write(root / "etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n")
    write(root / "etc/machine-id", f"{uuid.uuid4().hex}\n", 0o444)
    write(root / "etc/resolv.conf", resolv)
    for key, mode in (("ssh_host_ed25519_key", 0o600), ("ssh_host_ed25519_key.pub", 0o644)):
        write(root / "etc/ssh" / key, (directory / key).read_text(encoding="ascii"), mode)
    keys = root / "home/ops/.ssh/authorized_keys"
    write(keys, authorized_key, 0o600)
    keys.parent.chmod(0o700)
    for path in (keys.parent, keys):
        os.chown(path, OPS_UID, OPS_UID)


def _network(spec: Spec) -> str:
    return (
        "[Match]\nName=host0\n\n"
        f"[Link]\nMTUBytes={spec.mtu}\n\n"
        f"[Network]\nAddress={spec.address}/{spec.prefix}\nGateway={spec.gateway}\n"
        "DHCP=no\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    )


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file of a host's tree, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a link of the base tree would lead out of the host
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def create(spec: Spec, directory: Path) -> LabHost:
    """Make the host's disk and hardware below `directory`; `host.json` comes last, so a host that has one is whole."""
    for part in ("hw", "fs"):
        (directory / part).mkdir(parents=True, exist_ok=True)
    disk.create(directory / "disk.img", spec.disk_size)
    host = spec.host(directory)
    hardware.create(host.state_file, spec.profile, spec.name)
    spec.write(directory)
    return host


def discard(directory: Path) -> None:
    """Kill the host that is kept in `directory`, whole or half made, and delete everything of it, its disk included."""
    host = read(directory)
    if host:
        cgroup.kill(host.group)
        cgroup.remove(host.group)
        process.call(["ip", "link", "delete", host.veth], check=False)
    disk.wait_until_free(directory / "disk.img")
    (directory / _FILE).unlink(missing_ok=True)
    shutil.rmtree(directory)


def last_words(host: LabHost) -> str:
    """What the host and its supervisor printed last, to explain why it does not run."""
    lines: list[str] = []
    for name in ("supervisor.log", "console.log"):
        path = host.directory / name
        if path.exists():
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
    return "\n".join(f"  {line}" for line in lines) or "  (it printed nothing)"


def require_running(host: LabHost) -> None:
    """An error, with its last words, if the host has no power or does not come back from a reboot."""
    if host.hold_file.exists() and host.running_leader() is None:
        raise LabError(
            f"{host.name} hangs in a reboot, as it was told to: provision lab mend {host.name} hang-at-reboot"
        )
    if not host.on:
        raise LabError(f"{host.name} went off while it booted; the last that was seen of it:\n{last_words(host)}")
