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
Before=systemd-sysctl.service systemd-tmpfiles-setup.service systemd-modules-load.service
Before=systemd-udevd.service sysinit.target

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

# Daemons whose work is the machine's, not a host's: interrupts and the clock. Their packages and units are the real
# ones, what they start is not; but chronyd is, and takes its own clock for true: it sets nothing and asks nobody.
DROP_INS = {
    "irqbalance.service": "[Unit]\nConditionVirtualization=\n[Service]\nExecStart=\nExecStart=/bin/sleep infinity\n",
    "systemd-timesyncd.service": "[Unit]\nConditionVirtualization=\n[Service]\nType=exec\nWatchdogSec=0\n"
    "AmbientCapabilities=\nExecStart=\nExecStartPre=/bin/touch /run/systemd/timesync/synchronized\n"
    "ExecStart=/bin/sleep infinity\n",
    "chrony.service": "[Unit]\nConditionCapability=\n"
    f"[Service]\nExecStart=\nExecStart=!/usr/sbin/chronyd -x -f /{HOME}/chrony.conf\n",
}
CHRONY_CONF = "local stratum 8\npidfile /run/chrony/chronyd.pid\nbindcmdaddress /run/chrony/chronyd.sock\ncmdport 0\n"
GRUB_DEFAULT = """\
GRUB_DEFAULT=0
GRUB_TIMEOUT=5
GRUB_CMDLINE_LINUX_DEFAULT="quiet"
GRUB_CMDLINE_LINUX=""
"""


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
    for name, text in DROP_INS.items():
        _write(root / f"usr/lib/systemd/system/{name}.d/lab.conf", text)
    _write(home / "chrony.conf", CHRONY_CONF)
    for command, program in STAND_INS.items():
        _stand_before(root, command, program)
    _boot_loader(root)
    if (root / "usr/bin/python3").exists():
        arguments = ["-q", "--invalidation-mode", "unchecked-hash", f"/{HOME}"]
        subprocess.run(["chroot", str(root), "/usr/bin/python3", "-m", "compileall", *arguments], check=True)
        subprocess.run(["chroot", str(root), "/usr/sbin/update-grub"], check=True, capture_output=True)


def _boot_loader(root: Path) -> None:
    """What an installer leaves of GRUB: its sources, what was made of them, and the command that does."""
    _write(root / "etc/default/grub", GRUB_DEFAULT)
    (root / "etc/default/grub.d").mkdir(exist_ok=True)
    command = root / "usr/sbin/update-grub"
    _write(command, f'#!/bin/sh\n{START} grub update-grub "$@"\n')
    command.chmod(0o755)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


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
