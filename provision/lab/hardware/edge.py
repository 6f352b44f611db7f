"""What the simulated hardware adds to a base tree: a directory of programs, two units, stand-ins for a few commands.

The stand-ins are dpkg diversions, so that an upgrade of kmod, mount or util-linux inside a host leaves them in place.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

HOME = "usr/lib/lab-hardware"
START = f"exec /usr/bin/python3 -SEs /{HOME}/run.py"
_HERE = Path(__file__).parent
# Command, as its package names it: the simulated program that stands before it.
STAND_INS = {
    "/sbin/modprobe": "kmod modprobe",
    "/sbin/rmmod": "kmod rmmod",
    "/sbin/lsmod": "kmod lsmod",
    "/bin/lsmod": "kmod lsmod",
    "/sbin/modinfo": "kmod modinfo",
    "/sbin/swapon": "swap swapon",
    "/sbin/swapoff": "swap swapoff",
    "/bin/dmesg": "dmesg dmesg",
}
UNITS = {
    "lab-kernel.service": (
        "sysinit.target",
        f"""\
[Unit]
Description=This simulated host's own kernel knobs, PCI bus and modules
DefaultDependencies=no
ConditionPathIsMountPoint=/.lab/fs
Before=systemd-sysctl.service systemd-modules-load.service systemd-udevd.service sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 -SEs /{HOME}/run.py boot kernel
""",
    ),
    "lab-swap.service": (
        "swap.target",
        """\
[Unit]
Description=The swap files of /etc/fstab, which systemd leaves alone in a container
DefaultDependencies=no
After=lab-kernel.service local-fs.target
Before=swap.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=-/usr/sbin/swapon --all
""",
    ),
}


def programs() -> list[Path]:
    """The files that the programs inside a host are made of."""
    return [_HERE / "state.py", *sorted((_HERE / "tools").glob("*.py")), *sorted((_HERE / "tools").glob("*.layout"))]


def install(root: Path) -> None:
    """Write into a base tree (Debian 12, merged /usr) what real hardware and its kernel would give a bare host."""
    home = root / HOME
    copy_programs(home)
    for name, (target, text) in UNITS.items():
        units = root / "usr/lib/systemd/system"
        (units / f"{target}.wants").mkdir(parents=True, exist_ok=True)
        (units / name).write_text(text, encoding="utf-8")
        (units / f"{target}.wants" / name).symlink_to(f"../{name}")
    for command, program in STAND_INS.items():
        _stand_before(root, command, program)
    if (root / "usr/bin/python3").exists():
        arguments = ["-q", "--invalidation-mode", "unchecked-hash", f"/{HOME}"]
        subprocess.run(["chroot", str(root), "/usr/bin/python3", "-m", "compileall", *arguments], check=True)


def copy_programs(home: Path) -> None:
    """Put the programs, and the state's one implementation, into one directory."""
    home.mkdir(parents=True)
    for file in programs():
        shutil.copyfile(file, home / file.name)


def fingerprint() -> str:
    """A hash of everything that `install` writes."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for file in programs():
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _stand_before(root: Path, command: str, program: str) -> None:
    path = root / "usr" / command.lstrip("/")
    if not (path.exists() or path.is_symlink()):
        return
    path.rename(path.with_name(f"{path.name}.real"))
    path.write_text(f'#!/bin/sh\n{START} {program} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    with (root / "var/lib/dpkg/diversions").open("a", encoding="utf-8") as diversions:
        diversions.write(f"{command}\n{command}.real\n:\n")
