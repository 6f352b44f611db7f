"""A host whose clock is wrong.

Containers share the machine's clock, which must not be touched. So libfaketime from Debian is preloaded into every
program that starts in the host from then on: sshd's sessions, Python, date, apt, new daemons. What it does not reach:
processes that already ran (they keep the right time until they are restarted), the kernel itself (times of files,
timers), statically linked programs.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from provision.errors import LabError
from provision.lab import process
from provision.lab.host import LabHost
from provision.state import cache_dir

SKEW = 900  # seconds
_LIBRARY = "usr/lib/lab-hardware/libfaketime.so.1"
_SETTING = "etc/faketimerc"
_PRELOAD = "etc/ld.so.preload"
# sshd shuts a connection's first process in a sandbox that may open no file, so it is told by its environment instead.
_SSHD = "etc/systemd/system/ssh.service.d/lab-clock.conf"


def skew(host: LabHost) -> None:
    """Set the host's clock ahead by `SKEW` seconds."""
    shutil.copyfile(_library(), host.root / _LIBRARY)
    (host.root / _SETTING).write_text(f"+{SKEW}\n", encoding="ascii")
    (host.root / _SSHD).parent.mkdir(exist_ok=True)
    (host.root / _SSHD).write_text(
        f"[Service]\nEnvironment=FAKETIME=+{SKEW} FAKETIME_DISABLE_SHM=1\n", encoding="ascii"
    )
    (host.root / _PRELOAD).write_text(f"/{_LIBRARY}\n", encoding="ascii")
    _restart_sshd(host)


def correct(host: LabHost) -> None:
    """Right the clock again."""
    for name in (_PRELOAD, _SSHD, _SETTING, _LIBRARY):
        (host.root / name).unlink(missing_ok=True)
    _restart_sshd(host)


def _restart_sshd(host: LabHost) -> None:
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "try-restart", "ssh.service"])


def _library() -> Path:
    """The library, downloaded once for this machine with apt."""
    kept = cache_dir() / "lab" / "libfaketime.so.1"
    if kept.exists():
        return kept
    with tempfile.TemporaryDirectory(prefix="lab-clock-") as work:
        done = process.call(
            ["sh", "-c", f"cd {work} && apt-get download libfaketime && dpkg-deb -x ./*.deb ."], check=False
        )
        found = list(Path(work).rglob("libfaketime.so.1"))
        if done.returncode or not found:
            raise LabError(f"Debian's package libfaketime could not be downloaded: {done.stderr.strip()}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        new = kept.with_suffix(".new")
        shutil.copyfile(found[0], new)
        new.rename(kept)
    return kept
