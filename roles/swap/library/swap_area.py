#!/usr/bin/python
"""Ansible module: one swap area, a file or a partition, on now and at every boot; or none."""

from __future__ import annotations

import os
from typing import Iterable, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import (
    Change,
    access_changes,
    converge,
    read_text,
    remove_file,
    run,
    write_file,
)
from ansible.module_utils.provision_swap import (
    FSTAB,
    RESERVE,
    areas,
    compressed,
    disk_free,
    formatted,
    found_by_systemd,
    fstab_keeping_off,
    fstab_with,
    has_room_without,
    is_device,
    kept_off,
    marked,
    on_disk,
    refuse_file_system,
    refuse_partition,
    refuse_without_disk,
    refuse_without_memory,
    size_of,
    swap_names,
    text_of,
    turn_off,
    turn_on,
    whole,
)

DOCUMENTATION = r"""
module: swap_area
short_description: Converges a swap file or partition, its line in fstab, and whether the kernel uses it
description:
  - A file is allocated, formatted and synced under a temporary name and then renamed, so a file under O(path) is always
    a whole one. Its size, its signature, its mode, its line in C(/etc/fstab) and C(/proc/swaps) are each judged for
    itself.
  - A file of another size is made beside the old one, which goes only then. Where memory has no room for what is
    swapped out, the new file is used before the old one goes; it is then called C(PATH.2), and stays so, since a file
    in use has no other name to get. Where neither memory nor the disk has room, nothing is changed.
  - Refused by name are file systems that cannot hold swap, a disk that would be left with less than 1 GiB, and a
    partition that holds something else.
  - Lines of fstab that this module wrote carry the option C(x-provision). Areas of such lines that are no longer
    wanted, at another path for instance, are turned off and removed. All other areas are left alone unless O(only).
  - A partition that a GPT calls Linux swap is turned on by systemd at boot, unless fstab has a line for swap. One that
    is to be off has a line with C(noauto) and C(x-provision-off), until O(path) names it again.
options:
  mode:
    description: V(file), V(partition) (all of it), or V(none).
    type: str
    choices: [file, partition, none]
    default: file
  path:
    description: The swap file, or the partition (better a name below C(/dev/disk) than C(/dev/sdb2)).
    type: str
    required: true
  size:
    description: The size of a file in bytes; 0 for none.
    type: int
    default: 0
  only:
    description: Whether other areas are turned off and taken out of fstab. Without it they are told of.
    type: bool
    default: false
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
  swap_area:
    path: /swapfile
    size: "{{ '64G' | human_to_bytes }}"

- name: Leave the host without any swap
  swap_area:
    path: /swapfile
    mode: none
    only: true
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
  description: One entry for each of area, fstab and use that differs.
  returned: always
  type: list
  elements: dict
"""

PAGE = os.sysconf("SC_PAGE_SIZE")


def build(path: str, size: int) -> str:
    """Allocate, format and sync a file beside the path, unless a killed run left it whole; its temporary name."""
    temporary = f"{path}.new"  # one fixed name: a run that was killed leaves at most this
    if whole(temporary) != size:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        remove_file(temporary)
        with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as handle:
            if run(["stat", "--file-system", "--format=%T", temporary]).out.strip() == "btrfs":
                run(["chattr", "+C", temporary])  # the kernel refuses swap on a copy-on-write file
            os.posix_fallocate(handle.fileno(), 0, size)
            run(["mkswap", temporary])
            os.fsync(handle.fileno())
    return temporary


def put_in_place(path: str, size: int) -> None:
    """Give the new file its name; where it has no room beside the old one, that goes first."""
    if whole(f"{path}.new") != size and disk_free(path) + on_disk(f"{path}.new") < size:
        remove_file(path)
    os.replace(build(path, size), path)
    run(["sync", "--file-system", path])


def is_on(path: str) -> bool:
    """Whether the kernel uses this area; its table has the real path."""
    return os.path.realpath(path) in areas()


def on(path: str) -> Change:
    """The change that has the kernel use an area."""
    words = (f"{path}: off\n", f"{path}: on\n")
    return Change(f"Turned on swap on {path}.", lambda: turn_on(path), "/proc/swaps", *words)


def off(path: str) -> Change:
    """The change that takes an area out of use."""
    words = (f"{path}: on\n", f"{path}: off\n")
    return Change(f"Turned off swap on {path}.", lambda: turn_off(os.path.realpath(path)), "/proc/swaps", *words)


class Swap:
    """What is wanted of swap on this host, beside what is there."""

    def __init__(self, mode: str, path: str, size: int, only: bool) -> None:
        self.path, self.size, self.only = path, size - size % PAGE, only
        self.mode = mode if mode != "file" or self.size else "none"
        self.slots = [path] if mode == "partition" else [path, f"{path}.2"]
        self.fstab = read_text(FSTAB) or ""
        self.ours = list(dict.fromkeys([*self.slots, *marked(self.fstab)]))

    def plan(self) -> Iterator[Change]:
        """What is wanted comes first, and what is not goes then; fstab forgets it last, since by it we know our own."""
        kept = {"file": self.choose, "partition": lambda: self.path, "none": lambda: ""}[self.mode]()
        gone = [path for path in self.ours if path != kept]
        room = 0 if not kept or is_on(kept) else size_of(kept) if self.mode == "partition" else self.size
        for path in filter(is_on, gone):
            refuse_without_memory(os.path.realpath(path), room)
        if self.mode == "file":
            yield from self.file_changes(kept)
        elif self.mode == "partition":
            yield from self.partition_changes()
        yield from self.enter(kept)
        yield from self.keep_off(kept, gone)
        for path in gone:
            yield from self.removal(path)
        yield from self.enter(kept, gone)
        if self.only:
            yield from self.foreign_changes()

    def choose(self) -> str:
        """The file's name: where it is right, and rather in use; else where one may be made."""
        right = [path for path in self.slots if whole(path) == self.size]
        if right:
            return next(filter(is_on, right), right[0])
        may = [path for path in self.slots if not is_on(path) or has_room_without(os.path.realpath(path))]
        return may[0] if may else self.path

    def file_changes(self, path: str) -> Iterator[Change]:
        """The file itself, whole and in use."""
        if whole(path) != self.size:
            yield from self.making(path)
            return
        yield from access_changes(path, 0o600)
        if os.path.lexists(f"{path}.new"):
            yield Change(f"Removed {path}.new, which a killed run left.", lambda: remove_file(f"{path}.new"))
        if not is_on(path):
            yield on(path)

    def making(self, path: str) -> Iterator[Change]:
        """A new file: beside the old one while that is in use, so that there is swap all the time but a moment."""
        refuse_file_system(path)
        in_use, size = is_on(path), text_of(self.size)
        if in_use:
            refuse_without_memory(os.path.realpath(path))
        left = on_disk(f"{path}.new")  # by a killed run
        refuse_without_disk(path, self.size, left + on_disk(path))
        before = f"swap file of {text_of(whole(path))}\n" if whole(path) else "no whole swap file\n"
        texts = (path, before, f"swap file of {size}\n")
        if in_use and disk_free(path) + left >= self.size + RESERVE:
            sentence = f"Made the swap file {path} of {size}, beside the one in use."
            yield Change(sentence, lambda: build(path, self.size), *texts)
            yield off(path)
        else:
            yield from [off(path)] if in_use else []
            yield Change(f"Made the swap file {path} of {size}.", lambda: put_in_place(path, self.size), *texts)
        turning_on = on(path)
        if in_use:  # renamed only now: the kernel lets nobody touch the name of a file that it swaps to
            turning_on.act = lambda: (whole(path) == self.size or put_in_place(path, self.size), turn_on(path))
        yield turning_on

    def partition_changes(self) -> Iterator[Change]:
        """The partition, formatted and in use."""
        if is_on(self.path):
            return
        refuse_partition(self.path)
        if not formatted(self.path):
            sentence, path = f"Formatted the partition {self.path} as swap.", self.path
            yield Change(sentence, lambda: run(["mkswap", path]), path, "blank\n", "swap\n")
        yield on(self.path)

    def enter(self, kept: str, gone: Iterable[str] = ()) -> Iterator[Change]:
        """The line of fstab for the area that is kept, and none for those that went."""
        before, after = self.fstab, fstab_with(self.fstab, kept, gone)
        if before != after:
            names = [path for path in gone if path in swap_names(before)]
            sentence = f"Took {', '.join(names)} out of {FSTAB}." if names else f"Entered {kept} in {FSTAB}."
            yield self.rewriting(after, sentence)

    def rewriting(self, after: str, sentence: str) -> Change:
        """The change that gives fstab this text."""
        before, self.fstab = self.fstab, after
        return Change(sentence, lambda: write_file(FSTAB, after), FSTAB, before, after)

    def keep_off(self, kept: str, gone: Iterable[str]) -> Iterator[Change]:
        """What is to be off stays off at boot, though systemd finds it by itself; entered before it is forgotten."""
        there = kept_off(self.fstab)
        new = [path for path in self.coming_back(kept, gone) if path not in there]
        if new:
            sentence = f"Entered {', '.join(new)} in {FSTAB} as off, since systemd turns it on at boot by itself."
            yield self.rewriting(fstab_keeping_off(self.fstab, [*there, *new]), sentence)
        back = [path for path in there if kept and os.path.realpath(path) == os.path.realpath(kept)]
        if back:
            rest = [path for path in there if path not in back] + new
            sentence = f"Took the line out of {FSTAB} that kept {', '.join(back)} off at boot."
            yield self.rewriting(fstab_keeping_off(self.fstab, rest), sentence)

    def coming_back(self, kept: str, gone: Iterable[str]) -> list[str]:
        """What is to be off and systemd would turn on at boot: what is no longer wanted, and with `only` all of it.

        As long as there is swap that is wanted, its own line of fstab keeps systemd from turning on any other.
        """
        devices = {os.path.realpath(path) for path in gone if is_device(path)}
        every = self.only and not kept
        found = found_by_systemd() if every or devices else []
        return [path for path in found if every or os.path.realpath(path) in devices]

    def removal(self, path: str) -> Iterator[Change]:
        """An area of ours that is no longer wanted: out of use, and the file with what is beside it away."""
        if is_on(path):
            yield off(path)
        is_file = os.path.isfile(path) and not os.path.islink(path)
        if is_file and (formatted(path) or path in marked(self.fstab)):
            before = f"swap file of {text_of(os.path.getsize(path))}\n"
            yield Change(f"Removed the swap file {path}.", lambda: remove_file(path), path, before, "")
        if os.path.lexists(f"{path}.new"):
            yield Change(f"Removed {path}.new, which a killed run left.", lambda: remove_file(f"{path}.new"))

    def foreign(self) -> list[str]:
        """Areas in use that are not ours, compressed memory apart."""
        ours = {os.path.realpath(path) for path in self.ours}
        return [path for path in areas() if path not in ours and not os.path.basename(path).startswith("zram")]

    def foreign_changes(self) -> Iterator[Change]:
        """Nothing else as swap, now and at boot."""
        for path in self.foreign():
            refuse_without_memory(path)
            yield off(path)
        names = [name for name in swap_names(self.fstab) if name not in self.ours]
        if names:
            yield self.rewriting(fstab_with(self.fstab, "", names), f"Took {', '.join(names)} out of {FSTAB}.")

    def told(self) -> list[str]:
        """What else swaps on this host, as sentences."""
        others = [] if self.only else self.foreign()
        sizes = [f"{path} ({text_of(areas()[path].size)})" for path in others]
        hint = "is swap that this run left alone; swap_only: true takes it out of use and out of fstab."
        return [f"{', '.join(sizes)} {hint}"] * bool(sizes) + compressed()


def main() -> None:
    spec = {
        "mode": {"type": "str", "choices": ["file", "partition", "none"], "default": "file"},
        "path": {"type": "str", "required": True},
        "size": {"type": "int", "default": 0},
        "only": {"type": "bool", "default": False},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)

    def swap() -> Swap:
        return Swap(*(module.params[name] for name in ("mode", "path", "size", "only")))

    def facts() -> dict[str, str]:
        for sentence in swap().told():
            module.warn(sentence)
        return {}

    converge(module, lambda: swap().plan(), facts)


if __name__ == "__main__":
    main()
