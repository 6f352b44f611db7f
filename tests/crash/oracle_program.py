"""Runs on a host as root, on its own Python, and prints what the host is. Named areas only, or `all`.

No times, process ids, invocation ids or logs: two hosts on which the same was done read the same. What is left out says why.
"""

import glob
import hashlib
import json
import os
import re
import stat
import subprocess
import sys

AREAS = sys.argv[1].split(",")
ALL = AREAS == ["all"]

# Told by content: what a run writes. Told by size, mode and owner: what packages bring, whose versions are told as well.
BY_CONTENT = {
    "etc": ["/etc"],
    "lib": ["/var/lib/provision", "/opt/provision", "/data"],
    "run": ["/run/provision"],
    "root": ["/root", "/home", "/srv", "/usr/local", "/boot"],
    "scratch": ["/tmp", "/var/tmp"],
}
BY_SIZE = {"usr": ["/usr"], "tops": ["/"]}
SKIP = {
    "/etc/ld.so.cache": "rebuilt by ldconfig, with times in it",
    "/etc/.pwd.lock": "made by whichever program first changes a user",
    "/etc/passwd-": "the state before the last change of a user, whatever that was",
    "/etc/group-": "as passwd-",
    "/etc/shadow-": "as passwd-",
    "/etc/gshadow-": "as passwd-",
    "/etc/subuid-": "as passwd-",
    "/etc/subgid-": "as passwd-",
    "/etc/resolv.conf": "written by the network at each boot",
    "/usr/local": "told by content",
    "/usr/share/mime": "a cache that triggers rebuild",
    "/run/provision/lock": "holds the process id of the last who had it; who holds it now is told by `locks`",
    "/run/provision/lease": "is there once a run has changed something since boot; who holds it is told by `locks`",
    "/run/provision/provision-drift.service.consumed": "is there once the timer has gone off since boot",
    "/var/cache/provision/uv": "a cache that all simulated hosts share",
}
WORK = "/run/provision/work"  # is there once a module has needed it since boot; what is in it counts
# Names that only work in progress has, wherever it is.
PARTIAL = re.compile(
    r"\.(new|old|partial|tmp|dpkg-new|dpkg-tmp)(\.|$)|\.ansible/tmp/|/\.[^/]+\.[a-z0-9_]{8}$|/\.provision-|provision-verify"
)
# Rebuilt by themselves at times of their own.
# Notes of a stage that was begun (*.pending) are a run's memory, not the host's state, and are left out below.
VOLATILE = re.compile(
    r"/__pycache__/|/tmp/systemd-private-|/tmp/\.[A-Za-z0-9]+-unix|\.cache/|/\.lesshst$|/usr/local/lib/python3[^/]*/"
)


def text(*argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return None


def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def content(path, size):
    """A hash; of a large file its ends, which is where formats keep what makes them whole."""
    with open(path, "rb") as file:
        data = file.read(2**20)
        file.seek(max(len(data), size - 2**16))
        data += file.read()
    if path.startswith("/run/provision/") and path.endswith(".consumed"):
        data = data.split(b" ", 1)[-1]  # begins with the invocation id, which is compared with systemd's below
    if path == "/etc/shadow":  # the day of the last change of a password is a time
        data = re.sub(rb"(?m)^([^:]*:[^:]*):\d+:", rb"\1::", data)
    if path.endswith(".prom"):  # a metric's times and durations
        data = re.sub(rb"(?m)^(\S*(?:seconds|timestamp|time)\S*) .*$", rb"\1", data)
    if data[4086:4096] == b"SWAPSPACE2":  # mkswap gives each swap area a UUID at random
        data = data[:1036] + data[1052:]
    return hashlib.sha256(data).hexdigest()[:16]


def tell(path, with_content):
    seen = os.lstat(path)
    kind = f"{stat.filemode(seen.st_mode)} {seen.st_uid}:{seen.st_gid}"
    if stat.S_ISLNK(seen.st_mode):
        return f"{kind} -> {os.readlink(path)}"
    if stat.S_ISREG(seen.st_mode):
        return f"{kind} {seen.st_size} {content(path, seen.st_size) if with_content else ''}".rstrip()
    return kind


def walk(root, with_content):
    found = {root: tell(root, False)} if os.path.lexists(root) else {}
    for top, folders, names in os.walk(root):
        if re.match(r"/opt/provision/(tools|env/[^/]+|python)$", top):  # thousands of files: its record names each
            folders[:] = [name for name in folders if name == ".provision"]
        folders[:] = [name for name in folders if os.path.join(top, name) not in SKIP]
        for name in names + folders:
            path = os.path.join(top, name)
            if (
                path not in SKIP
                and not path.endswith(".pending")
                and not (path == WORK and not os.listdir(path))
                and not VOLATILE.search(path + "/" if name in folders else path)
            ):
                found[path] = tell(path, with_content)
    return found


def files():
    found = {}
    for roots, with_content in ((BY_CONTENT, True), (BY_SIZE, False)):
        for area, paths in roots.items():
            if (ALL or area in AREAS) and area != "tops":
                for root in paths:
                    found.update(walk(root, with_content))
    for path in glob.glob("/*"):
        found[path] = tell(path, os.path.isfile(path))
    return found


def environment(pid):
    """What the process was given; without what systemd makes up anew for each start."""
    words = (read(f"/proc/{pid}/environ") or b"").decode(errors="replace").split("\0")
    anew = ("INVOCATION_ID=", "JOURNAL_STREAM=", "SYSTEMD_EXEC_PID=", "MEMORY_PRESSURE", "RAY_")
    return hashlib.sha256("\0".join(sorted(w for w in words if not w.startswith(anew))).encode()).hexdigest()[:16]


def running(unit, shown):
    """What the unit's process was started with, against what stands in its files now."""
    pid = shown.get("MainPID", "0")
    if pid == "0":
        return None
    record = read(f"/run/provision/{unit}.consumed")
    fits = record is None or record.decode().split(" ", 1)[0] == shown["InvocationID"]
    return {
        "command": (read(f"/proc/{pid}/cmdline") or b"").decode(errors="replace").split("\0"),
        "environment": environment(pid),
        "executable": os.path.realpath(f"/proc/{pid}/exe"),
        "record is of this start": fits,
    }


# The system's own comings and goings: sessions, timers that fire when they like, what a login starts.
PASSING = re.compile(
    r"^(session-|user[@-]|user\.|systemd-(tmpfiles-clean|user-|hostnamed|timedated|localed)|apt-daily|dpkg-db-backup|e2scrub|fstrim"
    r"|modprobe@|getty@|sys-|dev-|proc-|run-credentials|run-user|run-lock|man-db|phpsessionclean|ssh@|logrotate|-\.|home\.mount|tmp\.mount)"
)


def units():
    """Every unit that systemd has loaded or finds on disk: state, whether it starts at boot, and its process."""
    found = {}
    for line in (text("systemctl", "list-unit-files", "--plain", "--no-legend", "--full") or "").splitlines():
        name, state = line.split()[:2]
        if not PASSING.match(name) and state != "transient":
            found.setdefault(name, {})["at boot"] = state
    loaded = (text("systemctl", "list-units", "--all", "--plain", "--no-legend", "--full") or "").splitlines()
    names = [line.split()[0] for line in loaded if not PASSING.match(line.split()[0])]
    keys = "Id,LoadState,ActiveState,SubState,Result,MainPID,InvocationID,NeedDaemonReload,DropInPaths"
    blocks = (text("systemctl", "show", "--property=" + keys, *names) or "").split("\n\n")
    for block in blocks:
        shown = dict(line.split("=", 1) for line in block.strip().splitlines() if "=" in line)
        name = shown.get("Id", "")
        # Whether systemd still has a unit in memory that does nothing is systemd's business.
        idle = shown["ActiveState"] == "inactive" and shown.get("Result", "") in ("success", "")
        # The host looks after itself every few minutes, and may do so just now.
        looks = name == "provision-drift.service" and shown["ActiveState"] == "activating"
        if not name or shown["LoadState"] == "not-found" or idle or looks:
            continue
        entry = found.setdefault(name, {})
        # A timer waits, or what it starts is at work just now: the hour says which.
        sub = "waiting" if name.endswith(".timer") and shown["SubState"] == "running" else shown["SubState"]
        entry.update(unread=shown["NeedDaemonReload"], state=[shown["ActiveState"], sub])
        entry["drop-ins"] = shown.get("DropInPaths", "")
        if name.endswith(".service") and not name.startswith(("systemd-", "dbus", "ssh.")):
            entry["process"] = running(name, shown)
    return found


def processes():
    """What runs outside of the host's services: the task of a controller that is gone, or a program that it left."""
    found = []
    for folder in glob.glob("/proc/[0-9]*"):
        group = (read(folder + "/cgroup") or b"").decode()
        command = (read(folder + "/cmdline") or b"").decode(errors="replace").replace("\0", " ").strip()
        # sshd keeps the connection that Ansible keeps for a minute; a login has a manager; whoever reads this came past it.
        usual = re.match(r"sshd:|/usr/sbin/sshd|\S*systemd|\(sd-pam", command) or re.search(
            r"\.service|init\.scope|visitors", group
        )
        if command and group and not usual and not _is_reader(folder):
            found.append(command[:200])
    return sorted(found)


def _is_reader(folder):
    """This program, or a process that led to it."""
    pid = os.getpid()
    while pid > 1:
        if folder == f"/proc/{pid}":
            return True
        pid = int((read(f"/proc/{pid}/stat") or b"0) S 0").decode().rsplit(")", 1)[1].split()[1])
    return False


def locks():
    """Locks on our files and on dpkg's that some process holds now."""
    names = [
        "/run/provision/lock",
        "/run/provision/lease",
        "/var/lib/dpkg/lock",
        "/var/lib/dpkg/lock-frontend",
        "/var/lib/apt/lists/lock",
    ]
    inodes = {}
    for name in names:
        if os.path.exists(name):
            seen = os.stat(name)
            inodes[(os.major(seen.st_dev), os.minor(seen.st_dev), seen.st_ino)] = name
    held = set()
    for line in (read("/proc/locks") or b"").decode().splitlines():
        words = line.replace(" -> ", " ").split()
        major, minor, inode = words[5].split(":")
        name = inodes.get((int(major, 16), int(minor, 16), int(inode)))
        if name:
            held.add(name)
    return sorted(held)


KNOBS = ["/proc/sys/vm/*", "/proc/sys/kernel/*", "/proc/sys/fs/*", "/proc/sys/fs/inotify/*", "/proc/sys/net/core/*",
         "/proc/sys/net/ipv4/*", "/sys/kernel/mm/transparent_hugepage/*", "/sys/devices/system/cpu/cpufreq/*/scaling_governor"]  # fmt: skip
# Counters, random numbers, and what the machine's memory and load decide.
COUNTERS = re.compile(
    r"(-nr|-state|_nr|nr_.*|random|ns_last_pid|/pty|state|uuid|hostname|domainname|dropped|inode.*|dentry.*|file-nr|tainted"
    r"|tcp_mem|udp_mem|sched_domain|ipfrag.*|_secret|tcp_fastopen_key|stat_refresh|compact_memory|drop_caches|lowmem_reserve.*|route.*)$"
)


def knobs():
    found = {}
    for path in sorted(path for pattern in KNOBS for path in glob.glob(pattern)):
        if not COUNTERS.search(path) and os.path.isfile(path) and os.access(path, os.R_OK):
            data = read(path)
            if data is not None:
                found[path] = " ".join(data.decode(errors="replace").split())
    return found


def packages():
    shown = text("dpkg-query", "-W", "-f", "${binary:Package} ${Version} ${db:Status-Abbrev}\n") or ""
    return dict(line.split(" ", 1) for line in shown.splitlines())


def mounts():
    """Source, place, type and options; what systemd mounts for each start of a unit, and login, comes and goes."""
    lines = (read("/proc/self/mounts") or b"").decode().splitlines()
    return sorted(
        {
            " ".join(line.split()[1:4])
            for line in lines
            if not re.search(r"/run/(credentials|user)|boot_id|/run/host|/dev/(shm|pts)", line)
        }
    )


GPU = ["index", "persistence_mode", "power.limit", "compute_mode", "ecc.mode.current", "ecc.mode.pending", "mig.mode.current",
       "mig.mode.pending", "clocks.current.sm", "clocks.current.memory", "fabric.state"]  # fmt: skip


def hardware():
    """The simulated cards themselves, below what nvidia-smi shows of them; without what a card measures or its driver counts."""
    data = read("/.lab/hw/state.json")
    if data is None:
        return {}
    state = json.loads(data)
    kept = ("index", "ecc_current", "ecc_pending", "mig_current", "mig_pending", "graphics_lock", "memory_lock", "power_limit",
            "compute_mode", "persistence", "fabric", "lost", "application_clocks")  # fmt: skip
    found = {f"gpu {gpu['index']}": {key: gpu.get(key) for key in kept} for gpu in state["gpus"]}
    found["driver"] = state["driver"]
    found["modules"] = sorted(state["modules"])
    found["clients"] = sorted(state["clients"])
    return found


def report():
    told = files()
    found = {"files": told, "leftovers": sorted(path for path in told if PARTIAL.search(path))}
    wanted = {"packages": packages, "knobs": knobs, "mounts": mounts, "hardware": hardware, "processes": processes, "units": units,
              "locks": locks}  # fmt: skip
    found.update({area: tell_area() for area, tell_area in wanted.items() if ALL or area in AREAS})
    if ALL:
        found["holds"] = (text("apt-mark", "showhold") or "").split()
        found["gpus"] = text("nvidia-smi", "--query-gpu=" + ",".join(GPU), "--format=csv")
    if ALL or "swaps" in AREAS:
        found["swaps"] = [" ".join(line.split()[:3]) for line in (read("/proc/swaps") or b"").decode().splitlines()[1:]]
    return found


sys.stdout.write(json.dumps(report()))
