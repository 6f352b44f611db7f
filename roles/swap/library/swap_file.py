#!/usr/bin/python
"""Ansible module: one swap file, made whole under another name, on now and at every boot; or none."""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import (
    Change,
    HostError,
    access_changes,
    converge,
    read_text,
    remove_file,
    run,
    write_file,
)

DOCUMENTATION = r"""
module: swap_file
short_description: Converges a swap file, its line in fstab, and whether the kernel uses it
description:
  - The file is allocated, formatted and synced under a temporary name and then renamed, so a file under O(path) is
    always a whole one. Its size, its signature, its mode, its line in C(/etc/fstab) and C(/proc/swaps) are each judged
    for itself.
  - A resize takes the old file out of use first. It refuses to when memory has no room for what is swapped out.
  - Other swap areas of the host are left alone.
options:
  path:
    description: The swap file.
    type: str
    required: true
  size:
    description: Its size in bytes; 0 for no swap file.
    type: int
    required: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Give the host 64 GiB of swap
  swap_file:
    path: /swapfile
    size: "{{ '64G' | human_to_bytes }}"
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Made the swap file /swapfile of 64.0 GiB., Turned on swap on /swapfile.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each of file, fstab and use that differs.
  returned: always
  type: list
  elements: dict
"""

FSTAB = "/etc/fstab"
PAGE = os.sysconf("SC_PAGE_SIZE")
LAST_PAGE = slice(1028, 1032)  # of the header: the number of the last page, from 0
HEADROOM = 64 * 2**20  # what must stay in memory besides the pages that come back from swap


def text_of(size: float) -> str:
    """A size for people: "64.0 GiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def swaps() -> dict[str, tuple[int, int]]:
    """Size and used bytes of every swap area in use, by path."""
    rows = (line.split() for line in (read_text("/proc/swaps") or "").splitlines()[1:])
    return {row[0].replace("\\040", " "): (int(row[2]) * 1024, int(row[3]) * 1024) for row in rows}


def whole(path: str) -> int:
    """The size of a file that is formatted as swap in all its length; 0 for anything else."""
    if not os.path.isfile(path) or os.path.islink(path):
        return 0
    with open(path, "rb") as handle:
        page = handle.read(PAGE)
        size = os.fstat(handle.fileno()).st_size
    last_page = int.from_bytes(page[LAST_PAGE], sys.byteorder)
    return size if page[-10:] == b"SWAPSPACE2" and (last_page + 1) * PAGE == size else 0


def refuse_without_memory(path: str) -> None:
    """Turning swap off brings its pages back: where to must be there, or the kernel kills for it."""
    areas = swaps()
    used = areas[path][1]
    free = sum(size - taken for area, (size, taken) in areas.items() if area != path)
    found = re.search(r"^MemAvailable:\s+(\d+) kB", read_text("/proc/meminfo") or "", re.MULTILINE)
    available = int(found.group(1)) * 1024 if found else 0
    if used and used + HEADROOM > available + free:
        raise HostError(
            f"{text_of(used)} are swapped out to {path}, and memory has room for {text_of(available + free)}: turning "
            "it off would kill processes. Stop the server on this host (systemctl stop vllm), or free memory, and run "
            "again."
        )


def refuse_without_disk(path: str, size: int) -> None:
    """The new file is made before or after the old one goes, but it must fit."""
    folder = os.path.dirname(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free + (os.stat(path).st_blocks * 512 if os.path.exists(path) else 0)
    if free < size:
        raise HostError(
            f"A swap file of {text_of(size)} does not fit at {path}: {text_of(free)} are free there, what is there now "
            "included. Set a smaller swap_size, or swap_path on another disk."
        )


def make(path: str, size: int) -> None:
    """Allocate, format, sync, and only then give the file its name."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    if shutil.disk_usage(folder).free < size:
        remove_file(path)
    temporary = f"{path}.new"  # one fixed name: a run that was killed leaves at most this, and the next takes it over
    remove_file(temporary)
    with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as handle:
        if run(["stat", "--file-system", "--format=%T", temporary]).out.strip() == "btrfs":
            run(["chattr", "+C", temporary])  # the kernel refuses swap on a copy-on-write file
        os.posix_fallocate(handle.fileno(), 0, size)
        run(["mkswap", temporary])
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    run(["sync", "--file-system", path])


def fstab_with(text: str, path: str, wanted: bool) -> str:
    """The text of fstab with exactly one line for the swap file, where its line was; or with none."""
    ours, kept, placed = f"{path} none swap sw,nofail 0 0\n", [], not wanted
    for line in text.splitlines(keepends=True):
        if line.split()[:1] != [path]:
            kept.append(line)
        elif not placed:
            kept.append(ours)
            placed = True
    if not placed:
        kept += ([] if not kept or kept[-1].endswith("\n") else ["\n"]) + [ours]
    return "".join(kept)


def turn_on(path: str) -> None:
    """Have the kernel use the file."""
    done = run(["swapon", path], check=False)
    if done.rc != 0:
        raise HostError(
            f"The kernel does not take {path} as swap: {done.err.strip()}. Some file systems cannot hold swap "
            "(overlay, ZFS, NFS); set swap_path on another, or swap_size: 0."
        )


def plan(path: str, size: int) -> Iterator[Change]:
    """Out of use, made anew, into fstab, into use: each step only where what is there asks for it."""
    size -= size % PAGE
    is_whole, in_use = whole(path), path in swaps()
    wrong = os.path.lexists(path) if size == 0 else is_whole != size
    if in_use and wrong:
        refuse_without_memory(path)
    if size and wrong:
        refuse_without_disk(path, size)
    if in_use and wrong:
        now = (f"{path}: on\n", f"{path}: off\n")
        yield Change(f"Turned off swap on {path}.", lambda: run(["swapoff", path]), "/proc/swaps", *now)
    before = f"swap file of {text_of(is_whole)}\n" if is_whole else "no whole swap file\n"
    if wrong and size:
        after = f"swap file of {text_of(size)}\n"
        yield Change(f"Made the swap file {path} of {text_of(size)}.", lambda: make(path, size), path, before, after)
    elif size:
        yield from access_changes(path, 0o600)
    fstab = read_text(FSTAB) or ""
    wanted = fstab_with(fstab, path, wanted=size > 0)
    if fstab != wanted:
        verb = "Entered {} in" if size else "Took {} out of"
        yield Change(f"{verb.format(path)} {FSTAB}.", lambda: write_file(FSTAB, wanted), FSTAB, fstab, wanted)
    if wrong and not size:
        yield Change(f"Removed the swap file {path}.", lambda: remove_file(path), path, before, "")
    if size and (wrong or not in_use):
        yield Change(
            f"Turned on swap on {path}.", lambda: turn_on(path), "/proc/swaps", f"{path}: off\n", f"{path}: on\n"
        )


def main() -> None:
    spec = {"path": {"type": "str", "required": True}, "size": {"type": "int", "required": True}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    converge(module, lambda: plan(module.params["path"], module.params["size"]))


if __name__ == "__main__":
    main()
