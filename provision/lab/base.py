"""The tree that every host starts from: a bare Debian server with an SSH login that has sudo, and nothing more.

Two trees are cached, each named after a hash of all that it is made from: `debian-<hash>`, the packages, and
`host-<hash>`, a copy of it with a login and the simulated hardware. Both are built under another name and renamed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from provision.lab import cgroup, hardware, machine, process
from provision.state import cache_dir

PACKAGES = (
    "systemd,systemd-sysv,dbus,libpam-systemd,openssh-server,sudo,python3,python3-apt,"
    "ca-certificates,iproute2,iputils-ping,kmod,netbase,procps"
)
_KEEP = 7 * 24 * 3600  # seconds that an unused tree is kept
_RUN_UNIT = """\
[Unit]
Description=Mount /run as Debian's initramfs does: nothing in it can be executed
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount -o remount,nosuid,nodev,noexec /run

[Install]
WantedBy=sysinit.target
"""
_FILES = {
    "etc/default/locale": ("LANG=C.UTF-8\n", 0o644),
    "etc/sudoers.d/ops": ("ops ALL=(ALL) NOPASSWD: ALL\n", 0o440),
    "etc/ssh/sshd_config.d/login.conf": ("PermitRootLogin no\nPasswordAuthentication no\n", 0o644),
}


def ensure(report: Callable[[str], None]) -> Path:
    """The base tree, made first if this machine has none such (half a minute, most of it downloads)."""
    with _lock() as cache:
        sources = machine.debian_sources()
        debian = cache / f"debian-{_digest(PACKAGES, sources, machine.RELEASE)}"
        if not debian.is_dir():
            report("Downloading and unpacking a bare Debian server (once for this machine)")
            with _built(debian) as new:
                _debootstrap(new, sources)
        host = (
            cache / f"host-{_digest(debian.name, Path(__file__).read_text(encoding='utf-8'), hardware.fingerprint())}"
        )
        if not host.is_dir():
            report("Adding a login and simulated hardware to it")
            with _built(host) as new:
                _call(["cp", "--archive", f"{debian}/.", str(new)])
                _furnish(new)
        for tree in (debian, host):
            os.utime(tree)
        _sweep(cache)
        return host


def forget_killed_build() -> None:
    """End what a killed `ensure` left running, unless another one is at work."""
    with contextlib.suppress(BlockingIOError), _lock(fcntl.LOCK_NB):
        pass


@contextlib.contextmanager
def _lock(option: int = 0) -> Iterator[Path]:
    """The cache, for one builder at a time, with nothing left in it or running from a builder that was killed."""
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    handle = os.open(cache, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | option)
        cgroup.kill(_group())
        for leftover in cache.glob(".*.new"):
            shutil.rmtree(leftover)
        yield cache
        cgroup.remove(_group())
    finally:
        os.close(handle)


def _cache() -> Path:
    return cache_dir() / "lab" / "base"


def _group() -> str:
    """The control group of the programs that build: they outlive a builder that is killed."""
    return f"base-{_digest(str(_cache()))}"


def _call(argv: list[str], stdin: str | None = None) -> None:
    """Run a program that builds, apart from the machine's mounts."""
    cgroup.make(_group())
    process.call(cgroup.enter(_group(), ["unshare", "--mount", "--propagation", "slave", *argv]), stdin=stdin)


@contextlib.contextmanager
def _built(tree: Path) -> Iterator[Path]:
    """A directory to build in, which becomes `tree` if the block succeeds and vanishes if not."""
    new = tree.with_name(f".{tree.name}.new")
    new.mkdir()
    try:
        yield new
        new.chmod(0o755)
        new.rename(tree)
    except BaseException:
        shutil.rmtree(new)
        raise


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _debootstrap(tree: Path, sources: str) -> None:
    include = f"--include={PACKAGES}"
    _call(
        ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", include, machine.RELEASE, str(tree), "-"],
        stdin=sources,
    )
    use_sources(tree, sources)


def use_sources(tree: Path, sources: str) -> None:
    """Have a tree that mmdebstrap made install from these sources, deb822 text, and from no others."""
    for path in [*tree.glob("etc/apt/sources.list*"), tree / "etc/apt/apt.conf.d/99mmdebstrap"]:
        if path.is_file():
            path.unlink()
    for path in tree.glob("etc/apt/sources.list.d/*"):
        path.unlink()
    (tree / "etc/apt/sources.list.d/debian.sources").write_text(sources, encoding="utf-8")


def _furnish(tree: Path) -> None:
    """What an installer would have left on the disk, and what the hardware and the kernel bring."""
    add_login(tree, _call)
    (tree / "etc/machine-id").write_text("", encoding="ascii")
    (tree / "var/log/journal").mkdir(exist_ok=True)  # the journal outlives a reboot
    (tree / "etc/systemd/system/run-noexec.service").write_text(_RUN_UNIT, encoding="ascii")
    _call(["systemctl", f"--root={tree}", "enable", "run-noexec.service"])
    hardware.install(tree)


def add_login(tree: Path, call: Callable[[list[str]], object]) -> None:
    """A user with sudo who logs in with a key alone, and a network; `call` runs a program."""
    call(["chroot", str(tree), "useradd", "--create-home", "--shell=/bin/bash", "--uid=1000", "ops"])
    for name, (text, mode) in _FILES.items():
        (tree / name).write_text(text, encoding="ascii")
        (tree / name).chmod(mode)
    for key in tree.glob("etc/ssh/ssh_host_*"):  # each host gets its own
        key.unlink()
    call(["systemctl", f"--root={tree}", "enable", "systemd-networkd.service"])


def _sweep(cache: Path) -> None:
    """Delete trees that were not asked for in a week and that no host runs on."""
    for tree in cache.iterdir():
        if time.time() - tree.stat().st_mtime < _KEEP:
            continue
        handle = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the supervisors of running hosts share it
            shutil.rmtree(tree)
        except BlockingIOError:
            continue
        finally:
            os.close(handle)
