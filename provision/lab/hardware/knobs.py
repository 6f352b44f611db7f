"""The kernel knobs that each simulated host has for itself: their values after boot, and what a kernel refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

THP = "sys/kernel/mm/transparent_hugepage"
HUGE_PAGES = "sys/kernel/mm/hugepages"
HUGE_PAGE_KIB = {"2M": 2048, "1G": 1048576}
GOVERNORS = ("performance", "powersave")  # of intel_pstate, which drives the CPUs of these servers
_LONG = 2**63 - 1


@dataclass(frozen=True)
class Knob:
    """One file of /proc/sys or /sys: the value after boot, and what it makes of a written one (ValueError: EINVAL)."""

    default: str
    accept: Callable[[str], str]
    mode: int = 0o644


def _number(low: int, high: int, default: int) -> Knob:
    def accept(text: str) -> str:
        value = int(text.strip(), 0)
        if not low <= value <= high:
            raise ValueError(text)
        return str(value)

    return Knob(str(default), accept)


def _like(default: str, mode: int) -> Knob:
    """A knob that we know nothing of but its present value: as many numbers as it has now."""

    def accept(text: str) -> str:
        words = text.split()
        if len(words) != len(default.split()):
            raise ValueError(text)
        for word in words:
            int(word, 0)
        return "\t".join(words)

    return Knob(default, accept, mode)


def _choice(words: str, default: str) -> Knob:
    def accept(text: str) -> str:
        word = text.strip()
        if word not in words.split():
            raise ValueError(text)
        return word

    return Knob(default, accept)


# After boot, as Linux 6.1 of Debian 12 on a two-socket server has them. Only knobs that this machine's kernel has too
# can be shown in a host, since nothing can be mounted where /proc has no file.
SYSCTLS: dict[str, Knob] = {
    "vm/swappiness": _number(0, 200, 60),
    "vm/overcommit_memory": _number(0, 2, 0),
    "vm/overcommit_ratio": _number(0, 2**31 - 1, 50),
    "vm/max_map_count": _number(0, 2**31 - 1, 65530),
    "vm/dirty_ratio": _number(0, 100, 20),
    "vm/dirty_background_ratio": _number(0, 100, 10),
    "vm/min_free_kbytes": _number(0, 2**31 - 1, 90112),
    "vm/zone_reclaim_mode": _number(0, 2**31 - 1, 0),
    "vm/nr_hugepages": _number(0, _LONG, 0),
    "vm/vfs_cache_pressure": _number(0, 2**31 - 1, 100),
    "vm/compaction_proactiveness": _number(0, 100, 20),
    "vm/panic_on_oom": _number(0, 2, 0),
    "kernel/numa_balancing": _number(0, 4, 1),
    "kernel/pid_max": _number(301, 4194304, 196608),
    "kernel/threads-max": _number(1, 2**30, 8251236),
    "kernel/panic": _number(-(2**31), 2**31 - 1, 0),
    "kernel/panic_on_oops": _number(0, 2**31 - 1, 0),
    "kernel/hung_task_timeout_secs": _number(0, _LONG // 250, 120),
    "kernel/hung_task_panic": _number(0, 1, 0),
    "kernel/nmi_watchdog": _number(0, 1, 1),
    "kernel/watchdog": _number(0, 1, 1),
    "kernel/softlockup_panic": _number(0, 1, 0),
    "kernel/sysrq": _number(0, 2**31 - 1, 438),
    "kernel/kptr_restrict": _number(0, 2, 0),
    "kernel/dmesg_restrict": _number(0, 1, 1),
    "kernel/perf_event_paranoid": _number(-1, 2**31 - 1, 3),
    "kernel/randomize_va_space": _number(0, 2, 2),
    "kernel/sched_autogroup_enabled": _number(0, 1, 1),
    "kernel/unprivileged_bpf_disabled": _number(0, 2, 2),
    "fs/file-max": _number(0, 2**64 - 1, _LONG),
    "fs/nr_open": _number(256, 2**31 - 64, 1048576),
    "fs/aio-max-nr": _number(0, 2**64 - 1, 65536),
    "fs/pipe-max-size": _number(4096, 2**31, 1048576),
    "fs/inotify/max_user_instances": _number(0, 2**31 - 1, 128),
    "fs/inotify/max_user_watches": _number(0, 2**31 - 1, 1048576),
    "fs/protected_fifos": _number(0, 2, 0),
    "fs/protected_hardlinks": _number(0, 1, 0),
    "fs/protected_regular": _number(0, 2, 0),
    "fs/protected_symlinks": _number(0, 1, 0),
    "fs/suid_dumpable": _number(0, 2, 0),
    # The rest of net/ is the host's own; these are the machine's, and cannot be written in a host.
    "net/core/rmem_max": _number(256, 2**31 - 1, 212992),
    "net/core/wmem_max": _number(4608, 2**31 - 1, 212992),
}

# These print every word they know, the chosen one in brackets.
CHOICES: dict[str, tuple[str, Knob]] = {
    f"{THP}/{name}": (words, _choice(words, default))
    for name, words, default in (
        ("enabled", "always madvise never", "always"),
        ("defrag", "always defer defer+madvise madvise never", "madvise"),
        ("shmem_enabled", "always within_size advise never deny force", "never"),
    )
}


def sysctls(machine: Path = Path("/proc/sys")) -> dict[str, Knob]:
    """Every knob by its path below /proc/sys: those known here, and all of vm/ that the machine's kernel has."""
    found = {name: knob for name, knob in SYSCTLS.items() if (machine / name).exists()}
    for file in sorted((machine / "vm").iterdir()):
        name, mode = f"vm/{file.name}", file.stat().st_mode & 0o777
        if name not in found and file.is_file():
            text = file.read_text(encoding="utf-8").strip() if mode & 0o444 else "0"
            found[name] = _like(text, mode)
    return found


def huge_pages(memory_gib: int) -> dict[str, Knob]:
    """How many huge pages are set aside, by path below the root; the kernel takes as many as there is memory for."""

    def accept(kib: int) -> Callable[[str], str]:
        return lambda text: str(min(int(text.strip(), 0), memory_gib * 2**20 // kib))

    return {f"{HUGE_PAGES}/hugepages-{kib}kB/nr_hugepages": Knob("0", accept(kib)) for kib in HUGE_PAGE_KIB.values()}


def transparent_huge_pages() -> dict[str, Knob]:
    """The plain numbers beside the choices, by path below the root."""
    return {
        f"{THP}/use_zero_page": _number(0, 1, 1),
        f"{THP}/khugepaged/defrag": _number(0, 1, 1),
        f"{THP}/khugepaged/pages_to_scan": _number(1, 2**32 - 1, 4096),
        f"{THP}/khugepaged/scan_sleep_millisecs": _number(0, 2**32 - 1, 10000),
        f"{THP}/khugepaged/alloc_sleep_millisecs": _number(0, 2**32 - 1, 60000),
        f"{THP}/khugepaged/max_ptes_none": _number(0, 511, 511),
    }
