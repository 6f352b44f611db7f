"""What a host is, read without any of the project's code: two hosts in the same state give equal snapshots.

`READ` is a program for the host's Python, run as root. No times, process ids or logs are in it; what runs is told by its
command line and environment.
"""

from __future__ import annotations

import json
from typing import Any

from rehearsal import Site

READ = r"""
import glob, hashlib, json, os, stat, subprocess

ROOTS = ["/etc", "/opt/provision", "/data/models", "/usr/local", "/var/lib/provision"]
# Rewritten by the system by itself; environments and caches are told by their names alone.
SKIP = ["/var/lib/provision/weights", "/etc/mtab", "/etc/ld.so.cache", "/etc/machine-id", "/etc/resolv.conf", "/etc/adjtime", "/etc/.pwd.lock",
        "/etc/ssl/certs", "/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-"]

def tell(path):
    at = os.lstat(path)
    kind = stat.filemode(at.st_mode) + f" {at.st_uid}:{at.st_gid}"
    if stat.S_ISLNK(at.st_mode):
        return kind + " -> " + os.readlink(path)
    if stat.S_ISREG(at.st_mode):
        with open(path, "rb") as file:
            return kind + " " + hashlib.sha256(file.read()).hexdigest()[:16]
    return kind

def files():
    found = {}
    for root in ROOTS:
        for top, directories, names in os.walk(root):
            directories[:] = [d for d in directories if os.path.join(top, d) not in SKIP and d != "__pycache__"]
            if top.startswith("/opt/provision/env/") and top.count("/") > 4 or top.startswith("/opt/provision/tools/"):
                directories[:] = []
                continue
            for name in names + directories:
                path = os.path.join(top, name)
                if path not in SKIP:
                    found[path] = tell(path)
    return found

def text(*argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return None

def read(path):
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None

def unit_of(line):
    name, load, active, sub = line.split()[:4]
    return name, [load, active, sub]

def running(unit):
    pid = text("systemctl", "show", "-P", "MainPID", unit).strip()
    if pid in ("", "0"):
        return None
    environment = sorted(word for word in (read(f"/proc/{pid}/environ") or "").split("\0")
                         if not word.startswith(("INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MEMORY_PRESSURE", "RAY_")))
    return [(read(f"/proc/{pid}/cmdline") or "").split("\0"), hashlib.sha256("\0".join(environment).encode()).hexdigest()[:16]]

OURS = ["ray-head.service", "ray-worker.service", "vllm.service", "nvidia-persistenced.service", "nvidia-fabricmanager.service"]
GPU = "index,persistence_mode,power.limit,compute_mode,ecc.mode.current,mig.mode.current,clocks.current.sm,fabric.state"
units = text("systemctl", "list-units", "--type=service", "--all", "--plain", "--no-legend", "--full")
print(json.dumps({
    "files": files(),
    "packages": text("dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Abbrev}\n").split("\n"),
    "holds": text("apt-mark", "showhold").split(),
    "units": dict(unit_of(line) for line in units.splitlines()
                  if not line.startswith(("run-", "provision-", "session-", "user", "systemd-", "apt-", "dpkg-", "e2scrub", "fstrim"))),
    "enabled": {unit: (text("systemctl", "is-enabled", unit) or "").strip() for unit in OURS},
    "processes": {unit: running(unit) for unit in OURS},
    "swaps": [line.split()[:3] for line in (read("/proc/swaps") or "").splitlines()[1:]],
    "knobs": {path: read(path) for path in sorted(
        glob.glob("/proc/sys/vm/*") + glob.glob("/proc/sys/kernel/*") + glob.glob("/proc/sys/fs/*")
        + glob.glob("/proc/sys/net/core/*") + glob.glob("/sys/kernel/mm/transparent_hugepage/*"))
        if not path.endswith(("-nr", "-state", "random", "ns_last_pid", "pty", "nr", "state", "uuid", "hostname"))},
    "gpus": text("nvidia-smi", "--query-gpu=" + GPU, "--format=csv"),
    "leftovers": glob.glob("/tmp/provision*") + glob.glob("/root/.ansible/tmp/*") + glob.glob("/home/*/.ansible/tmp/*"),
}))
"""


def snapshot(site: Site, host: str, inside: bool = False) -> dict[str, Any]:
    """The state of one host, read through a login, or past it."""
    read = site.inside if inside else site.sh
    state: dict[str, Any] = json.loads(read(host, f"python3 - <<'END'\n{READ}\nEND"))
    return state


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What differs between two snapshots, by area and name."""
    found = {}
    for area, old in before.items():
        new = after[area]
        if isinstance(old, dict):
            names = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
            found.update({f"{area}: {name}": (old.get(name), new.get(name)) for name in sorted(names)})
        elif old != new:
            found[area] = (old, new)
    return found
