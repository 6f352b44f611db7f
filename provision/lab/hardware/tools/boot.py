"""Run once at the start of each boot: lays the host's own kernel files over those of the machine that it runs on."""

from __future__ import annotations

import ctypes
import os
import re

import devices
import state

FILES = "/.lab/fs"
GRUB_CFG = "/boot/grub/grub.cfg"
BIND, REMOUNT, READ_ONLY, RECURSIVE = 4096, 32, 1, 16384
libc = ctypes.CDLL(None, use_errno=True)


def main(_version: str, _arguments: list[str]) -> int:
    command_line()
    for directory in ("proc/sys/vm", "proc/driver", "sys/kernel/mm/transparent_hugepage", "sys/kernel/mm/hugepages"):
        bind(directory)
    for file in ("proc/swaps", "proc/cmdline"):
        bind(file)
    for directory in ("proc/sys/kernel", "proc/sys/fs", "proc/sys/fs/inotify", "proc/sys/net/core"):
        for name in os.listdir(f"{FILES}/{directory}"):
            if os.path.isfile(f"{FILES}/{directory}/{name}"):
                bind(f"{directory}/{name}")
    # sysfs cannot get new directories, but its branches can be seen through an overlay that has them.
    bridges = sorted(name for name in os.listdir(f"{FILES}/sys/devices") if name.startswith("pci"))
    for branch, inners in (
        ("sys/class", ["infiniband"]),
        ("sys/bus", ["pci"]),
        ("sys/devices", [*bridges, "system/cpu/cpufreq"]),
    ):
        if any(os.path.isdir(f"{FILES}/{branch}/{inner}") for inner in inners):
            mount("overlay", f"/{branch}", "overlay", READ_ONLY, f"lowerdir={FILES}/{branch}:/{branch}")
            for inner in inners:
                bind(f"{branch}/{inner}")
    if not os.path.isdir("/sys/module"):
        mount(None, "/sys", None, REMOUNT | BIND)
        os.mkdir("/sys/module")
        mount(None, "/sys", None, REMOUNT | BIND | READ_ONLY)
    bind("sys/module")
    modules()
    return 0


def bind(path: str) -> None:
    """Show our file or directory at its real place; a machine whose kernel has no such place goes without."""
    if os.path.exists(f"/{path}"):
        mount(f"{FILES}/{path}", f"/{path}", None, BIND)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [text.encode() if text else None for text in (source, target, kind, data)]
    if libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]):
        raise OSError(ctypes.get_errno(), f"cannot mount {source or ''} at {target}")


def command_line() -> None:
    """What GRUB would start the kernel with: its first entry; and the huge pages that this asks for."""
    text = ""
    if os.path.exists(GRUB_CFG):
        with open(GRUB_CFG, encoding="utf-8") as file:
            text = next(iter(re.findall(r"^\s*linux\s+(.*)$", file.read(), re.MULTILINE)), "")
    with state.Change() as hardware:
        hardware["command_line"] = f"BOOT_IMAGE={text}"
        size = "2048"
        for word in text.split():
            name, _, value = word.partition("=")
            if name == "hugepagesz":
                size = str(int(value[:-1]) * {"M": 1024, "G": 1048576}[value[-1]])
            elif name == "hugepages":
                hardware["knobs"][f"sys/kernel/mm/hugepages/hugepages-{size}kB/nr_hugepages"] = value


def modules() -> None:
    """What udev and systemd-modules-load do on a machine that loads its own modules."""
    with state.Change() as hardware:
        if "nouveau" in hardware["modules"] and "nouveau" in _words(
            ("/etc/modprobe.d", "/usr/lib/modprobe.d"), "blacklist"
        ):
            hardware["modules"].remove("nouveau")
        for name in _words(("/etc/modules-load.d", "/usr/lib/modules-load.d"), None):
            if name.replace("-", "_") in (*state.NVIDIA_MODULES, *state.RDMA_MODULES):
                state.load_module(hardware, name.replace("-", "_"))
    devices.make(hardware)


def _words(directories: tuple[str, ...], keyword: str | None) -> set[str]:
    found = set()
    for directory in directories:
        for name in os.listdir(directory) if os.path.isdir(directory) else ():
            with open(f"{directory}/{name}", encoding="utf-8", errors="replace") as file:
                pattern = rf"^\s*{keyword}\s+(\S+)" if keyword else r"^\s*([^#;\s]+)\s*$"
                found |= set(re.findall(pattern, file.read(), re.MULTILINE))
    return found
