"""The files that a host's kernel would show for its hardware, as one tree made from the state.

Paths are as in the host: `proc/sys/vm/swappiness`, `sys/class/infiniband/...`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache

from provision.lab.hardware import knobs, nvidia_proc, pci, rdma, state
from provision.lab.hardware.nodes import Directory, Hardware, Link, Node, Setting

_MEMORY_GIB = 64  # of a server without cards
_WIDE = 10_000_000  # KiB; the kernel leaves out a tab after wider numbers


def build(hardware: Hardware) -> Directory:
    """Everything that this host's kernel shows of its hardware at this moment."""
    tree: Directory = {}
    for path, setting in _knobs(hardware).items():
        _put(tree, path, setting)
    _put(tree, "proc/swaps", _swaps(hardware))
    _put(tree, "proc/cmdline", f"{hardware.get('command_line', '')}\n")
    _put(tree, "proc/driver", nvidia_proc.driver_directory(hardware))
    _put(tree, "sys/module", _modules(hardware))
    _put(tree, "sys/bus/pci", pci.bus(hardware))
    for name, bridge in pci.bridges(hardware).items():
        _put(tree, f"{pci.DEVICES}/{name}", bridge)
    if hardware["rdma"]:
        _put(tree, "sys/class/infiniband", rdma.devices(hardware))
        _put(tree, "sys/class/infiniband_mad/abi_version", "5\n")
    _put(tree, "sys/devices/system/cpu", _cpus(hardware))
    return tree


def find(tree: Directory, path: str) -> Node:
    """What lies at an absolute path of the tree. Raises KeyError where nothing does."""
    node: Node = tree
    for name in path.strip("/").split("/"):
        if name and not isinstance(node, dict):
            raise KeyError(path)
        node = node[name] if name and isinstance(node, dict) else node
    return node


def _put(tree: Directory, path: str, node: Node) -> None:
    *directories, name = path.split("/")
    for directory in directories:
        inner = tree.setdefault(directory, {})
        assert isinstance(inner, dict), path  # noqa: S101  # the paths above never pass through a file
        tree = inner
    tree[name] = node


@cache
def _known_knobs() -> dict[str, knobs.Knob]:
    settings = {f"proc/sys/{name}": knob for name, knob in knobs.sysctls().items()}
    return settings | knobs.transparent_huge_pages()


def _knobs(hardware: Hardware) -> Directory:
    files: Directory = {f"{knobs.THP}/hpage_pmd_size": "2097152\n"}
    for path, knob in _known_knobs().items():
        value = hardware["knobs"].get(path, knob.default)
        files[path] = Setting(f"{value}\n", _setter("knobs", path, knob.accept), knob.mode)
    for path, knob in knobs.huge_pages(hardware["profile"].get("min_memory_gib", _MEMORY_GIB)).items():
        value = hardware["knobs"].get(path, knob.default)
        folder = path.rpartition("/")[0]
        files[path] = Setting(f"{value}\n", _setter("knobs", path, knob.accept))
        files |= {f"{folder}/{name}_hugepages": "0\n" for name in ("resv", "surplus", "nr_overcommit")}
        files[f"{folder}/free_hugepages"] = f"{value}\n"
    for path, (words, knob) in knobs.CHOICES.items():
        chosen = hardware["knobs"].get(path, knob.default)
        text = " ".join(f"[{word}]" if word == chosen else word for word in words.split())
        files[path] = Setting(f"{text}\n", _setter("knobs", path, knob.accept))
    return files


def _setter(section: str, key: str, accept: Callable[[str], str]) -> Callable[[Hardware, str], None]:
    def write(hardware: Hardware, text: str) -> None:
        hardware[section][key] = accept(text)

    return write


def _swaps(hardware: Hardware) -> str:
    lines = ["Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"]
    for swap in hardware["swaps"]:
        gap = " " * max(40 - len(swap["path"]), 1)
        tab = "\t" if swap["size_kib"] < _WIDE else ""
        lines.append(f"{swap['path']}{gap}file\t\t{swap['size_kib']}\t{tab}0\t\t{swap['priority']}\n")
    return "".join(lines)


def _modules(hardware: Hardware) -> Directory:
    return {name: _module(hardware, name) for name in hardware["modules"]}


def _module(hardware: Hardware, name: str) -> Directory:
    size = state.module_size(name)
    module: Directory = {
        "initstate": "live\n",
        "refcnt": "0\n",
        "coresize": f"{size}\n",
        "holders": {},
        "parameters": {},
    }
    if name.startswith("nvidia"):
        module["version"] = f"{hardware['driver']['loaded']}\n"
    return module


def _governor(text: str) -> str:
    word = text.strip()
    if word not in knobs.GOVERNORS:
        raise ValueError(text)
    return word


def _cpus(hardware: Hardware) -> Directory:
    policies: Directory = {}
    cpus: Directory = {"cpufreq": policies}
    for number in range(os.cpu_count() or 1):
        governor = hardware["governors"].get(str(number), "powersave")
        cpus[f"cpu{number}"] = {"cpufreq": Link(f"../cpufreq/policy{number}")}
        policies[f"policy{number}"] = {
            "scaling_governor": Setting(f"{governor}\n", _setter("governors", str(number), _governor)),
            "scaling_available_governors": " ".join(knobs.GOVERNORS) + " \n",
            "scaling_driver": "intel_pstate\n",
            "affected_cpus": f"{number}\n",
            "related_cpus": f"{number}\n",
            "cpuinfo_min_freq": "800000\n",
            "cpuinfo_max_freq": "3800000\n",
            "scaling_min_freq": "800000\n",
            "scaling_max_freq": "3800000\n",
            "scaling_cur_freq": "3800000\n" if governor == "performance" else "800000\n",
        }
    return cpus
