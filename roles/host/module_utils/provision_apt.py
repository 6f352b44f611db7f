"""Debian packages for this project's modules: what is installed and held, and getting others in place of it.

Reading is by dpkg alone, some twenty milliseconds, so a converged host pays nothing for apt. The package lists are
fetched only when something must be installed that they do not know, or that is no longer where they say.
"""

from __future__ import annotations

import fnmatch
import os
import re
import time
from pathlib import Path
from typing import Iterable, Iterator, Mapping, NamedTuple, Sequence

from ansible.module_utils.provision_host import Change, HostError, run
from ansible.module_utils.provision_transient import WORK, UnitError, run_unit

LOCKS = (
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/apt/lists/lock",
    "/var/cache/apt/archives/lock",
)
LISTS = "/var/lib/apt/lists"
STATUS, JOURNAL = "/var/lib/dpkg/status", "/var/lib/dpkg/updates"
FIELDS = ("Package", "Architecture", "db:Status-Abbrev", "Version", "Provides", "Pre-Depends", "Depends")
LOCKED = r"(Could not get|Unable to acquire|Unable to lock).*lock"

# What an earlier run left half done is finished first; where packages need what is gone, apt does nothing else before
# that is back (LOST). With ALONE no package starts its services: which run, and after what, is the business of units.
# Maintainer scripts ask policy-rc.d; ours forbids only while the unit's folder in /run is there, so that one that a
# power cut leaves behind forbids nothing. It cannot lie in that folder itself: Debian mounts /run without execution.
# For dpkg's locks apt waits itself, as long as DPkg::Lock::Timeout says. At those of its lists and archives, which
# apt-daily.service holds now and then, it gives up at once: there it is asked again, for as long.
INSTALL = r"""
seconds() { cut -d. -f1 /proc/uptime; }
apt() {
  give_up=$(($(seconds) + LOCK_TIMEOUT))
  until apt-get --yes --option=Dpkg::Options::=--force-confdef --option=Dpkg::Options::=--force-confold \
    --option=DPkg::Lock::Timeout="$LOCK_TIMEOUT" "$@" 2>"$FOLDER/said"; do
    locked=$(grep -E "$LOCKED" "$FOLDER/said" || true)
    case $locked in
      */var/lib/dpkg/*) ;;
      ?*) if [ "$(seconds)" -lt "$give_up" ]; then sleep 1; continue; fi ;;
    esac
    cat "$FOLDER/said" >&2
    if [ -n "$locked" ]; then exit 100; fi
    return 1
  done
}
policy=/usr/sbin/policy-rc.d
if [ -n "$ALONE" ] && { [ ! -e $policy ] || grep -q '^# Written by provision' $policy; }; then
  trap 'rm -f $policy $policy.provision' EXIT
  trap 'exit 143' TERM
  printf '#!/bin/sh\n# Written by provision.\n[ ! -d "%s" ] || exit 101\n' "$FOLDER" > $policy.provision
  chmod 755 $policy.provision
  mv -T $policy.provision $policy
fi
is_sound=yes
if ls /var/lib/dpkg/updates/[0-9]* >/dev/null 2>&1 || [ -n "$(dpkg --audit)" ]; then
  is_sound=
  dpkg --configure --pending || true
fi
set -f
if [ "$is_sound" != yes ] || [ -n "$LOST" ]; then
  if ! apt check && ! apt install --fix-broken; then
    PACKAGES="$PACKAGES $LOST"
    OPTIONS="$OPTIONS --allow-change-held-packages"
  fi
fi
if ! apt install --no-install-recommends $OPTIONS $PACKAGES; then
  apt update
  apt install --no-install-recommends $OPTIONS $PACKAGES
fi
"""


class Package(NamedTuple):
    """A package that is there; `whole` unless its installation or removal stopped half way."""

    version: str
    held: bool
    whole: bool = True
    depends: str = ""
    provides: str = ""


_known: dict[object, dict[str, Package]] = {}  # by the state of dpkg's files: one process may ask often


def installed() -> dict[str, Package]:
    """Every package that is there, by its name; of a foreign architecture only where there is no native one."""
    seen = os.stat(STATUS)
    key = (seen.st_ino, seen.st_mtime_ns, seen.st_size, tuple(os.listdir(JOURNAL)))
    if key not in _known:
        _known.clear()
        _known[key] = _ask_dpkg()
    return _known[key]


def _ask_dpkg() -> dict[str, Package]:
    form = "\t".join(f"${{{field}}}" for field in FIELDS) + "\x1e"  # a field may hold a line's end
    rows = [record.split("\t") for record in run(["dpkg-query", "--show", f"--showformat={form}"]).out.split("\x1e")]
    rows = [row for row in rows if len(row) == len(FIELDS) and row[2][1:2] not in ("n", "c")]
    native = {row[1] for row in rows if row[0] == "dpkg"} | {"all"}
    packages = {}
    for name, _, status, version, provides, *depends in sorted(rows, key=lambda row: row[1] in native):
        whole = status[1:3].strip() == "i"
        packages[name] = Package(version, status.startswith("h"), whole, ",".join(depends), provides)
    return packages


def satisfies(package: Package | None, wanted: str) -> bool:
    """Whether a package is installed, whole, and in this version; a wanted version may be a pattern (`580.1-*`)."""
    return package is not None and package.whole and (not wanted or fnmatch.fnmatchcase(package.version, wanted))


def lost_dependencies(names: Iterable[str], present: Mapping[str, Package]) -> set[str]:
    """What the packages need, directly or not, and is gone (removed by force) or stopped half way."""
    provided = {
        words[0] for package in present.values() for words in map(str.split, package.provides.split(",")) if words
    }
    todo, seen, lost = list(names), set(names), set()
    while todo:
        package = present.get(todo.pop())
        for clause in package.depends.split(",") if package else ():
            choices = [re.split(r"[\s:(]", word.strip())[0] for word in clause.split("|") if word.strip()]
            there = [name for name in choices if name in present]
            if any(present[name].whole for name in there) or not choices:
                new = set(there) - seen
                todo += new
                seen |= new
            elif there or not provided.intersection(choices):
                lost.add((there or choices)[0])
    return lost - set(names)


def unoffered(names: Sequence[str]) -> list[str]:
    """Those of the packages that apt could not install by the lists that it has; its caches are not written."""
    quietly = ["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]
    told = run(["apt-cache", *quietly, "policy", *names]).out
    offered = re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (?!\(none\))", told, re.MULTILINE)
    return [name for name in names if name not in offered]


def has_lists() -> bool:
    """Whether apt has any list to ask."""
    return any(Path(LISTS).glob("*_Packages*"))


def fetch_lists(lock_timeout_s: int) -> bool:
    """Fetch the lists anew; whether all of them came. Apt does not wait for their lock, so it is asked again."""
    give_up = time.monotonic() + lock_timeout_s
    while True:
        done = run(["apt-get", "update", "--option=APT::Update::Error-Mode=any"], check=False)
        if done.rc == 0 or not re.search(LOCKED, done.err) or time.monotonic() >= give_up:
            return done.rc == 0
        time.sleep(1)


def lock_holder(locks: Iterable[str] = LOCKS) -> str:
    """Who holds one of apt's locks, as the kernel lists them: "unattended-upgr (process 812)"; empty for nobody."""
    inodes = {Path(lock).stat().st_ino for lock in locks if Path(lock).exists()}
    for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
        words = line.replace(" -> ", " ").split()
        if words[1] == "POSIX" and int(words[5].rsplit(":", 1)[1]) in inodes:
            name = Path(f"/proc/{words[4]}/comm")
            return f"{name.read_text(encoding='utf-8').strip() if name.exists() else 'a process'} (process {words[4]})"
    return ""


def install(
    wanted: Mapping[str, str],
    lock_timeout_s: int,
    unit: str,
    options: Sequence[str] = (),
    alone: bool = False,
    without: Sequence[str] = (),
) -> None:
    """Install packages, each in the version asked for (empty: any), after fetching the lists if they are too old.

    As a unit of that name, which goes on when this process ends. `alone` keeps packages from starting services. The
    packages in `without` are removed in the same transaction.
    """
    present = installed()
    specs = [f"{name}={version}" if version else name for name, version in sorted(wanted.items())]
    specs += [f"{name}-" for name in sorted(without)]
    environment = {
        "DEBIAN_FRONTEND": "noninteractive",
        "NEEDRESTART_SUSPEND": "1",
        "NEEDRESTART_MODE": "l",
        "LC_ALL": "C",
        "LOCKED": LOCKED,
        "LOCK_TIMEOUT": str(lock_timeout_s),
        "FOLDER": f"{WORK}/{unit}",
        "OPTIONS": " ".join(options),
        "PACKAGES": " ".join(specs),
        "LOST": " ".join(sorted(lost_dependencies(present, present) - {*wanted, *without})),
        "ALONE": "yes" if alone else "",
    }
    try:
        run_unit(unit, INSTALL, environment)
    except UnitError as error:
        raise HostError(explain(error.told, specs, unit, lock_timeout_s)) from None


def explain(told: str, specs: Sequence[str], unit: str, lock_timeout_s: int) -> str:
    """Why an installation failed: who holds the lock, or what apt said last."""
    refused = [line for line in told.splitlines() if re.search(LOCKED, line)]
    if refused:
        lock = next((path for path in LOCKS if re.search(rf"{path}(?![\w-])", refused[-1])), "")
        holder = lock_holder([lock] if lock else LOCKS)
        return (
            f"apt is in use on this host: {f'{holder} holds' if holder else 'a process that has just ended held'} "
            f"{lock or 'its lock'}, and this run has waited {lock_timeout_s} s for it. Wait for it to end, or stop it, "
            "and run again."
        )
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("debconf:", f"{unit}.service:", "Failed to start"))]
    # First what went wrong, then what followed from it: dkms, which builds modules, begins with `Error!`.
    errors = [line for pattern in (r"Error!|Consult ", r"E: |dpkg: error") for line in said if re.match(pattern, line)]
    errors = list(dict.fromkeys(errors))
    return (
        f"apt-get install {' '.join(specs)} failed. It said: {' '.join(errors[:6] or said[-8:])}\n"
        f"See more on the host with: journalctl -u {unit}"
    )


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
