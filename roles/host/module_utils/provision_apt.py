"""Debian packages for this project's modules: what is installed and held, and getting others in place of it.

Reading is by dpkg alone, some twenty milliseconds, so a converged host pays nothing for apt. The package lists are
fetched only when something must be installed that they do not know, or that is no longer where they say.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple, Sequence

from ansible.module_utils.provision_host import Change, HostError, remove_file, run, write_file

LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock", "/var/lib/apt/lists/lock")
QUIET = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1", "NEEDRESTART_MODE": "l"}
POLICY, POLICY_TARGET = Path("/usr/sbin/policy-rc.d"), "/run/provision/policy-rc.d"
OPTIONS = ("--yes", "--option=Dpkg::Options::=--force-confdef", "--option=Dpkg::Options::=--force-confold")


class Package(NamedTuple):
    """An installed package."""

    version: str
    held: bool


def installed() -> dict[str, Package]:
    """Every fully installed package by its name, those of foreign architectures left out."""
    listed = run(["dpkg-query", "--show", "--showformat=${binary:Package}\t${db:Status-Abbrev}\t${Version}\n"])
    packages = {}
    for line in listed.out.splitlines():
        name, status, version = line.split("\t")
        if status[1:2] == "i":
            packages[name.split(":")[0]] = Package(version, held=status.startswith("h"))
    return packages


def satisfies(package: Package | None, wanted: str) -> bool:
    """Whether a package is installed, and in this version; a wanted version may be a pattern such as `580.126.20-*`."""
    return package is not None and (not wanted or fnmatch.fnmatchcase(package.version, wanted))


def lock_holder() -> str:
    """Who holds one of apt's locks, as the kernel lists them: "unattended-upgr (process 812)"; empty for nobody."""
    inodes = {Path(lock).stat().st_ino for lock in LOCKS if Path(lock).exists()}
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        words = line.replace(" -> ", " ").split()
        if words[1] == "POSIX" and int(words[5].rsplit(":", 1)[1]) in inodes:
            name = Path(f"/proc/{words[4]}/comm")
            return f"{name.read_text(encoding='utf-8').strip() if name.exists() else 'a process'} (process {words[4]})"
    return ""


def apt_get(*arguments: str, lock_timeout_s: int) -> None:
    """Run apt-get, waiting that long for another that holds the lock; a failure says what apt said, or who holds it."""
    waiting = f"--option=DPkg::Lock::Timeout={lock_timeout_s}"
    done = run(["apt-get", *OPTIONS, waiting, *arguments], check=False, env=QUIET)
    if done.rc == 0:
        return
    if re.search(r"(Could not get|Unable to acquire|Unable to lock).*lock", done.err):
        raise HostError(
            f"apt is in use on this host: {lock_holder() or 'another process'} has held its lock for more than "
            f"{lock_timeout_s} s. Wait for it to end, or stop it, and run again."
        )
    if "dpkg --configure -a" in done.err:
        raise HostError("dpkg was interrupted on this host earlier. Run there: dpkg --configure -a; then run again.")
    said = [line.strip() for line in done.err.splitlines() if line.strip() and not line.startswith("debconf:")]
    raise HostError(f"apt-get {' '.join(arguments)} ended with {done.rc}. It said last: " + " ".join(said[-8:]))


@contextlib.contextmanager
def services_left_alone() -> Iterator[None]:
    """Let no package start its services: which ones run, and after what, is the units' business.

    By policy-rc.d, which maintainer scripts ask. It is a link into /run, so that one that a power cut leaves behind
    points nowhere, which means: no policy.
    """
    if POLICY.exists():
        yield
        return
    write_file(POLICY_TARGET, "#!/bin/sh\nexit 101\n", 0o755)
    POLICY.unlink(missing_ok=True)
    POLICY.symlink_to(POLICY_TARGET)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)
        remove_file(POLICY_TARGET)


def install(wanted: Mapping[str, str], lock_timeout_s: int, *options: str) -> None:
    """Install packages, each in the version asked for (empty: any), after fetching the lists if they are too old."""
    finish_interrupted(lock_timeout_s)
    specs = [f"{name}={version}" if version else name for name, version in sorted(wanted.items())]
    command = ("install", "--no-install-recommends", *options, *specs)
    try:
        apt_get(*command, lock_timeout_s=lock_timeout_s)
    except HostError as error:
        if "apt is in use" in str(error):
            raise
        apt_get("update", lock_timeout_s=lock_timeout_s)
        apt_get(*command, lock_timeout_s=lock_timeout_s)


def finish_interrupted(lock_timeout_s: int) -> None:
    """Let dpkg finish what a power cut or a kill interrupted; nothing happens on a sound host."""
    if any(Path("/var/lib/dpkg/updates").glob("[0-9]*")) or run(["dpkg", "--audit"], check=False).out.strip():
        apt_get("install", "--fix-broken", lock_timeout_s=lock_timeout_s)
        run(["dpkg", "--configure", "--pending"], env=QUIET)


def hold_changes(names: Sequence[str], held: bool) -> Iterator[Change]:
    """The change, if one is needed, that holds these packages against upgrades (or lets them go)."""
    if names:
        listed = ", ".join(names)
        yield Change(
            f"Held {listed} against upgrades." if held else f"Released {listed} for upgrades.",
            lambda: run(["apt-mark", "hold" if held else "unhold", *names]),
            "apt holds",
            "".join(f"{name}: {'free' if held else 'held'}\n" for name in names),
            "".join(f"{name}: {'held' if held else 'free'}\n" for name in names),
        )
