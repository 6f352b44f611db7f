"""Swap on a host: what the kernel uses, what a file or partition holds, what a file system allows, and fstab's lines.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from typing import Iterable, Iterator, NamedTuple

from ansible.module_utils.provision_fitness import HOLD_SWAP
from ansible.module_utils.provision_host import HostError, read_text, run

FSTAB = "/etc/fstab"
MARK = "x-provision"  # an option of fstab that means nothing to the kernel: by it we know our lines again
# Marks a line that keeps a partition off. systemd-gpt-auto-generator turns on what a GPT calls Linux swap, unless fstab
# has any line for swap (systemd 234 and later), be it one with noauto. What else there is does not do: the unit to be
# masked is called after /dev/sdb2 or, in later versions, after a number of the disk, and both change from boot to boot;
# masking the generator takes the mounts of /boot and the EFI partition with it; systemd.swap=0 is heeded from 254 on.
OFF = "x-provision-off"
LINUX_SWAP = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"  # the type of such a partition
BY_PARTUUID = "/dev/disk/by-partuuid"
PAGE = os.sysconf("SC_PAGE_SIZE")
LAST_PAGE = slice(1028, 1032)  # of the header: the number of the last page, from 0
HEADROOM = 64 * 2**20  # what must stay in memory besides the pages that come back from swap
RESERVE = 2**30  # what must stay free on the disk besides the swap file
WHY_NOT = {
    "overlay": "whose files the kernel cannot find on a disk",
    "tmpfs": "which is memory itself",
    "ramfs": "which is memory itself",
    "nfs": "which is another host's disk",
    "nfs4": "which is another host's disk",
    "zfs": "where swap can lock the host up when memory runs out",
}


class Area(NamedTuple):
    """A swap area that the kernel uses: file or partition, its size and what is swapped out to it (bytes)."""

    kind: str
    size: int
    used: int


class Mount(NamedTuple):
    """The file system below a path."""

    point: str
    kind: str
    source: str
    options: frozenset[str]


def text_of(size: float) -> str:
    """A size for people: "64.0 GiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def unescaped(word: str) -> str:
    """A path as the kernel's tables write it, with spaces and the like in octal."""
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), word)


def areas() -> dict[str, Area]:
    """Every swap area in use, by path."""
    rows = (line.split() for line in (read_text("/proc/swaps") or "").splitlines()[1:])
    return {unescaped(row[0]): Area(row[1], int(row[2]) * 1024, int(row[3]) * 1024) for row in rows}


def room_without(path: str) -> tuple[int, int]:
    """What is swapped out to an area, and what memory and the other areas have room for, in bytes."""
    seen = areas()
    free = sum(area.size - area.used for name, area in seen.items() if name != path)
    found = re.search(r"^MemAvailable:\s+(\d+) kB", read_text("/proc/meminfo") or "", re.MULTILINE)
    return seen[path].used if path in seen else 0, (int(found[1]) * 1024 if found else 0) + free


def has_room_without(path: str, more: int = 0) -> bool:
    """Whether an area can be turned off, `more` room granted: its pages come back, and must have where to."""
    used, room = room_without(path)
    return not used or used + HEADROOM <= room + more


def refuse_without_memory(path: str, more: int = 0) -> None:
    """Stop where turning an area off would have the kernel kill for memory."""
    if not has_room_without(path, more):
        used, room = room_without(path)
        raise HostError(
            f"{text_of(used)} are swapped out to {path}, and memory has room for {text_of(room + more)}: turning it "
            "off would kill processes. Stop the server on this host (systemctl stop vllm), or free memory, and run "
            "again."
        )


def turn_off(path: str) -> None:
    """Take an area out of use, if memory still has room for what is swapped out."""
    refuse_without_memory(path)
    run(["swapoff", path])


def turn_on(path: str) -> None:
    """Have the kernel use an area."""
    done = run(["swapon", path], check=False)
    if done.rc != 0:
        raise HostError(
            f"The kernel does not take {path} as swap: {done.err.strip()}. It says more in: journalctl -k -g swap. Set "
            "swap_path on another file system, or swap_mode: none."
        )


def formatted(path: str) -> int:
    """How many bytes of a file or device are formatted as swap; 0 for none."""
    with open(path, "rb") as handle:
        page = handle.read(PAGE)
    last_page = int.from_bytes(page[LAST_PAGE], sys.byteorder)
    return (last_page + 1) * PAGE if page[-10:] == b"SWAPSPACE2" else 0


def whole(path: str) -> int:
    """The size of a file that is formatted as swap in all its length and has no holes; 0 for anything else."""
    if not os.path.isfile(path) or os.path.islink(path):
        return 0
    seen = os.stat(path)
    return seen.st_size if seen.st_blocks * 512 >= seen.st_size == formatted(path) else 0


def existing(path: str) -> str:
    """The nearest directory above a path that is there."""
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def mount_of(path: str, table: str = "/proc/self/mountinfo") -> Mount:
    """What is mounted where a path lies; of several mounts on one place, the last."""
    path, best = os.path.realpath(path), Mount("", "unknown", "", frozenset())
    for line in (read_text(table) or "").splitlines():
        left, _, right = line.partition(" - ")
        fields, (kind, source, *more) = left.split(), right.split()
        point = unescaped(fields[4])
        if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best.point):
            best = Mount(point, kind, unescaped(source), frozenset(fields[5].split(",") + ",".join(more).split(",")))
    return best


def refuse_file_system(path: str) -> None:
    """Stop where the kernel would not take a swap file, before anything is made."""
    folder = existing(path)
    mount = mount_of(folder)
    where = f"{path} would lie on {mount.kind} ({mount.source}, mounted at {mount.point or '/'})"
    if mount.kind not in HOLD_SWAP:
        reason = WHY_NOT.get(mount.kind, "and the kernel takes swap files from ext4, XFS and btrfs alone")
        raise HostError(f"{where}, {reason}. Set swap_path on another file system, or swap_mode: none.")
    if "ro" in mount.options:
        raise HostError(f"{where}, which is mounted read-only. Set swap_path on another, or mount it writable.")
    if mount.kind == "btrfs":
        flags = run(["lsattr", "-d", folder]).out.split()[:1]
        if flags and "c" in flags[0]:
            raise HostError(
                f"{where}, and {folder} has its files compressed, which the kernel refuses for swap. Take that from "
                f"the directory with: chattr -c {folder}; or set swap_path to another."
            )


def disk_free(path: str) -> int:
    """Bytes that are free where a path lies."""
    return shutil.disk_usage(existing(path)).free


def refuse_without_disk(path: str, size: int, freed: int) -> None:
    """Stop where the file and a reserve beside it do not fit; `freed` is what goes before it comes."""
    free = disk_free(path) + freed
    if free < size + RESERVE:
        gone = f", {text_of(freed)} of it in what it replaces" if freed else ""
        raise HostError(
            f"A swap file of {text_of(size)} does not fit at {path}: {text_of(free)} are free there{gone}, and "
            f"{text_of(RESERVE)} must stay free. Set a smaller swap_size, or swap_path on another disk."
        )


def on_disk(path: str) -> int:
    """The bytes that a file takes on its disk; 0 for none."""
    return os.stat(path).st_blocks * 512 if os.path.isfile(path) and not os.path.islink(path) else 0


def refuse_partition(path: str) -> None:
    """Stop unless a path is a partition (or volume) that is blank, or swap already."""
    if not os.path.exists(path):
        raise HostError(f"{path} is not there. Set swap_path to a partition; `lsblk` on the host lists them.")
    if not stat.S_ISBLK(os.stat(path).st_mode):
        raise HostError(
            f"{path} is no block device, and swap_mode is partition. Set swap_path to one, or swap_mode: file."
        )
    told = run(["blkid", "--probe", "--output", "export", path], check=False).out
    holds = dict(line.split("=", 1) for line in told.splitlines() if "=" in line)
    kind = holds.get("TYPE") or holds.get("PTTYPE")
    if kind and kind != "swap":
        raise HostError(
            f"{path} holds {kind}, which would be lost. If it is not needed, clear it on the host with: wipefs --all "
            f"{path}; else set swap_path to another partition."
        )
    device = os.stat(path).st_rdev
    number = f"{os.major(device)}:{os.minor(device)}"
    rows = (line.split() for line in (read_text("/proc/self/mountinfo") or "").splitlines())
    mounted = [row[4] for row in rows if row[2] == number]
    if mounted:
        raise HostError(f"{path} is mounted at {unescaped(mounted[0])}. Set swap_path to another partition.")


def size_of(device: str) -> int:
    """The size of a block device in bytes; 0 for one that is not there."""
    if not os.path.exists(device):
        return 0
    with open(device, "rb") as handle:
        return handle.seek(0, os.SEEK_END)


def swap_fields(text: str) -> Iterator[list[str]]:
    """The fields of each line of fstab that names a swap area, the area's name as it is."""
    for line in text.splitlines():
        fields = line.split("#")[0].split()
        if len(fields) > 2 and fields[2] == "swap":
            yield [unescaped(fields[0]), *fields[1:]]


def options(fields: list[str]) -> list[str]:
    """The options in the fields of a line."""
    return "".join(fields[3:4]).split(",")


def swap_names(text: str) -> list[str]:
    """The swap areas of fstab: paths, or `UUID=...`; not what is there to stay off."""
    return [fields[0] for fields in swap_fields(text) if OFF not in options(fields)]


def kept_off(text: str) -> list[str]:
    """The partitions that fstab keeps off at boot."""
    return [fields[0] for fields in swap_fields(text) if OFF in options(fields)]


def marked(text: str) -> list[str]:
    """The swap areas that fstab has from us."""
    return [fields[0] for fields in swap_fields(text) if MARK in options(fields)]


def fstab_with(text: str, wanted: str, gone: Iterable[str] = ()) -> str:
    """The text of fstab with exactly one line for the wanted area, where its line was, and none for those gone."""
    escaped = re.sub(r"\s", lambda found: f"\\{ord(found[0]):03o}", wanted)
    entry, kept, placed, gone = f"{escaped} none swap sw,nofail,{MARK} 0 0\n", [], not wanted, set(gone)
    for line in text.splitlines(keepends=True):
        name = next(iter(swap_names(line)), None)
        if name is None or name not in gone | {wanted}:
            kept.append(line)
        elif name == wanted and not placed:
            kept.append(entry)
            placed = True
    if not placed:
        kept += ([] if not kept or kept[-1].endswith("\n") else ["\n"]) + [entry]
    return "".join(kept)


def fstab_keeping_off(text: str, names: Iterable[str]) -> str:
    """The text of fstab with one line for each of these, by which it stays off at boot, and for no other."""
    missing, kept = set(names), []
    for line in text.splitlines(keepends=True):
        name = kept_off(line)
        if not name or name[0] in missing:
            kept.append(line)
            missing.difference_update(name)
    entries = [f"{name} none swap noauto,{OFF} 0 0\n" for name in sorted(missing)]
    kept += ["\n"] if entries and kept and not kept[-1].endswith("\n") else []
    return "".join(kept + entries)


def found_by_systemd() -> list[str]:
    """The partitions that systemd turns on at boot by itself: what a GPT calls Linux swap.

    It looks at the root's disk alone. Which that is below LVM, RAID and encryption is its business, so all disks count.
    """
    told = run(["lsblk", "--pairs", "--output", "PARTTYPE,PARTUUID"], check=False).out
    uuids = re.findall(rf'PARTTYPE="{LINUX_SWAP}" PARTUUID="([^"]+)"', told, re.IGNORECASE)
    return sorted({f"{BY_PARTUUID}/{uuid}" for uuid in uuids})


def is_device(path: str) -> bool:
    """Whether a path is a block device, such as a partition."""
    return os.path.exists(path) and stat.S_ISBLK(os.stat(path).st_mode)


def compressed() -> list[str]:
    """What keeps swapped pages in memory on this host, as sentences: it takes memory to give memory."""
    told = []
    zram = [name for name in areas() if os.path.basename(name).startswith("zram")]
    if zram:
        told.append(
            f"{', '.join(zram)} is compressed memory used as swap (zram); it is left alone. To be rid of it, remove "
            "the package that makes it (zram-tools, systemd-zram-generator) and reboot."
        )
    if (read_text("/sys/module/zswap/parameters/enabled") or "").strip() == "Y":
        told.append(
            "zswap is on: swapped pages are first compressed in memory. It is left alone; zswap.enabled=0 among "
            "host_kernel_parameters turns it off."
        )
    return told
