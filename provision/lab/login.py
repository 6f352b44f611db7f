"""Logging in to simulated hosts: a key of the fleet's own, and host keys that are known before the first boot."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from provision.errors import LabError
from provision.lab import container, process
from provision.lab.host import LabHost

USER = "ops"
KEY = "ssh_key"
HOST_KEY = "ssh_host_ed25519_key"
BOOT = 120  # seconds until a host that was switched on must answer
AWAKE = 20  # seconds until a host that was on already must


def make_keys(directory: Path) -> None:
    """Make the key that opens every host of the fleet kept in `directory`, unless it is there."""
    _generate(directory / KEY, "provision-lab")


def make_host_key(directory: Path, name: str) -> None:
    """Make the key by which the host kept in `directory` proves who it is, unless it is there."""
    directory.mkdir(parents=True, exist_ok=True)
    _generate(directory / HOST_KEY, name)


def _generate(path: Path, comment: str) -> None:
    """An ed25519 key pair; the private half comes last, so that a key that exists is whole."""
    if path.exists():
        return
    new = path.with_name(f".{path.name}.new")
    public = path.with_name(f"{new.name}.pub")
    for leftover in (new, public):
        leftover.unlink(missing_ok=True)
    process.call(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(new)])
    public.rename(path.with_name(f"{path.name}.pub"))
    new.rename(path)


def trust(directory: Path, hosts: Sequence[LabHost]) -> None:
    """Write the fleet's `known_hosts`: by name and by address."""
    lines = []
    for host in hosts:
        kind, key, *_ = (host.directory / f"{HOST_KEY}.pub").read_text(encoding="ascii").split()
        lines.append(f"{host.name},{host.address} {kind} {key}\n")
    new = directory / ".known_hosts.new"
    new.write_text("".join(lines), encoding="ascii")
    new.replace(directory / "known_hosts")


def ssh_arguments(directory: Path) -> list[str]:
    """Options of ssh that trust the fleet's own host keys and no others."""
    options = {
        "UserKnownHostsFile": str(directory / "known_hosts"),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
    }
    return [word for option, value in options.items() for word in ("-o", f"{option}={value}")]


def ssh_command(directory: Path, host: LabHost, *options: str) -> list[str]:
    """The command that logs in on a host of the fleet kept in `directory`, and nothing of the user's own ssh_config."""
    key = ["-F", "none", "-i", str(directory / KEY), "-o", "LogLevel=ERROR"]
    return ["ssh", *key, *ssh_arguments(directory), *options, f"{USER}@{host.address}"]


def await_answers(
    directory: Path, hosts: Sequence[LabHost], report: Callable[[str], None], *, seconds: int = BOOT
) -> None:
    """Wait until each host lets the fleet's user in, or say what was last seen of those that do not."""
    deadline = time.monotonic() + seconds
    waiting = list(hosts)
    while waiting:
        report(f"Booting: {len(hosts) - len(waiting)} of {len(hosts)} hosts answer")
        waiting = [host for host in waiting if not _answers(directory, host)]
        if waiting and time.monotonic() > deadline:
            words = "\n".join(f"{host.name}:\n{container.last_words(host)}" for host in waiting)
            raise LabError(
                f"No answer over SSH within {seconds} s. The last that was seen:\n{words}\n"
                f"  Cut the power: provision lab reboot --hard {waiting[0].name}"
            )
        for host in waiting:
            container.require_running(host)
        time.sleep(0.1 if waiting else 0)


def _answers(directory: Path, host: LabHost) -> bool:
    command = ssh_command(directory, host, "-o", "BatchMode=yes", "-o", "ConnectTimeout=2")
    return process.call([*command, "true"], check=False).returncode == 0
