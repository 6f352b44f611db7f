#!/usr/bin/python
"""Ansible module: huge pages that are set aside, now and at every boot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, Mapping

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import Change, HostError, absent_change, converge, file_change, read_text

DOCUMENTATION = r"""
module: huge_pages
short_description: Converges the number of huge pages that are set aside
description:
  - Writes how many pages of each size are set aside at boot, and sets them aside now. What is set aside is no one
    else's memory; more than is available is refused before anything is changed.
  - Memory that has been in use for a while may not have that much in one piece, above all for pages of 1 GiB. Then the
    module says how to ask the kernel for them at boot.
  - A size that the inventory no longer names is given back.
options:
  pages:
    description: The number of pages by their size, which is V(2M) or V(1G) on x86.
    type: dict
    default: {}
  file:
    description: The file that sets them at boot; wholly owned by this module.
    type: str
    default: /etc/tmpfiles.d/91-provision-hugepages.conf
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Set aside 16 GiB in pages of 2 MiB
  huge_pages:
    pages: {2M: 8192}
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Set aside 8192 huge pages of 2M (there were 0).]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for the file and for each size that differs.
  returned: always
  type: list
  elements: dict
"""

FOLDER = Path("/sys/kernel/mm/hugepages")
UNITS = {"K": 1, "M": 2**10, "G": 2**20}  # KiB
HEADER = "# Written by provision (role host); changes made here are undone by its next run.\n"
HEADROOM = 2**20  # KiB that must stay available besides the pages


def kib(size: str) -> int:
    """A size such as 2M in KiB; 0 for what is none."""
    found = re.fullmatch(r"([1-9]\d*)([KMG])", size)
    return int(found[1]) * UNITS[found[2]] if found else 0


def place(size: str) -> Path:
    """The kernel's file that holds the number of pages of a size."""
    return FOLDER / f"hugepages-{kib(size)}kB" / "nr_hugepages"


def name_of(folder: Path) -> str:
    """A size as people write it, of the kernel's directory."""
    number = int(folder.name[len("hugepages-") : -len("kB")])
    unit = next(unit for unit in "GMK" if number % UNITS[unit] == 0)
    return f"{number // UNITS[unit]}{unit}"


def has(size: str) -> int:
    """How many pages of a size are set aside now."""
    return int(place(size).read_text(encoding="ascii"))


def refuse(pages: Mapping[str, int]) -> None:
    """Stop before anything is changed where the kernel lacks a size, or memory has no room."""
    for size in pages:
        if not place(size).is_file():
            known = ", ".join(sorted(name_of(folder) for folder in FOLDER.glob("hugepages-*"))) or "none"
            raise HostError(f"This kernel has no huge pages of {size}; it has {known}. Correct host_hugepages.")
    more = sum(max(count - has(size), 0) * kib(size) for size, count in pages.items())
    found = re.search(r"^MemAvailable:\s+(\d+) kB", read_text("/proc/meminfo") or "", re.MULTILINE)
    available = int(found[1]) if found else 0
    if more and more + HEADROOM > available:
        raise HostError(
            f"The huge pages of host_hugepages take {more / 2**20:.1f} GiB more, and {available / 2**20:.1f} GiB are "
            "available, of which 1.0 GiB must stay. Ask for fewer, or stop what uses the memory."
        )


def set_aside(size: str, count: int) -> None:
    """Have the kernel set pages aside; it takes as many as it finds, which may be too few."""
    place(size).write_text(f"{count}\n", encoding="ascii")
    if has(size) != count:
        raise HostError(
            f"The kernel found memory for {has(size)} of {count} huge pages of {size}: the rest is in small "
            f"pieces. Have them set aside at boot: host_kernel_parameters: [hugepagesz={size}, hugepages={count}]"
        )


def plan(pages: Mapping[str, int], file: str) -> Iterator[Change]:
    """Sizes that are given back, the file, and the sizes that are wanted; the file last forgets a size."""
    former = [name_of(Path(path).parent) for path in re.findall(r"^w (\S+)", read_text(file) or "", re.MULTILINE)]
    refuse(pages)
    for size in (size for size in former if size not in pages and place(size).is_file()):
        yield from live_change(size, 0)
    lines = "".join(f"w {place(size)} - - - - {count}\n" for size, count in sorted(pages.items()))
    yield from file_change(file, HEADER + lines) if pages else absent_change(file)
    for size, count in sorted(pages.items()):
        yield from live_change(size, count)


def live_change(size: str, count: int) -> Iterator[Change]:
    """The change, if one is needed, that has the kernel hold so many pages."""
    now = has(size)
    if now != count:
        yield Change(
            f"Set aside {count} huge pages of {size} (there were {now}).",
            lambda: set_aside(size, count),
            str(place(size)),
            f"{now}\n",
            f"{count}\n",
        )


def main() -> None:
    spec = {
        "pages": {"type": "dict", "default": {}},
        "file": {"type": "str", "default": "/etc/tmpfiles.d/91-provision-hugepages.conf"},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    pages = {str(size): int(count) for size, count in module.params["pages"].items()}
    converge(module, lambda: plan(pages, module.params["file"]))


if __name__ == "__main__":
    main()
