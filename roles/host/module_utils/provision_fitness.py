"""Whether a host is what the inventory says and fit to be prepared: what stands in the way, from what was seen there.

The stage preflight asks this on the host, `provision preflight` on the controller, of the same facts (those of
`provision_look.base`). So nothing here looks at the host that it runs on. Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Iterable, Iterator, Mapping, NamedTuple, Tuple

GIB = 2**30
PYTHON = (3, 9)
# Where the kernel takes a swap file, given that it has no holes. btrfs has rules of its own.
HOLD_SWAP = ("ext2", "ext3", "ext4", "xfs", "btrfs")


class Objection(NamedTuple):
    """Something that a bootstrap would fail on: what it is about, what is, and what to do."""

    about: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} {self.remedy}"


def objections(facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Objection]:
    """Everything at once; `wanted` is what the module host_preflight takes."""
    name, profiles = wanted["profile_name"], wanted["profiles"]
    yield from of_system(facts["system"], wanted["supported_os"])
    sizes, reserve = wanted["min_free_disk"], wanted["reserve_disk"]
    yield from of_disks(facts["free"], sizes, reserve if facts["bootstrapped"] else None)
    if name and name not in profiles:
        known = ", ".join(sorted(profiles))
        yield Objection("hardware", f"hardware_profile {name} is not known.", f"Known are {known}.")
    elif name:
        yield from of_hardware(name, profiles, [(device["kind"], device["device"]) for device in facts["nvidia"]])
        if wanted["check_memory"]:
            yield from of_memory(name, facts["memory"], profiles[name]["min_memory_gib"])
    if facts["secure_boot"] and not wanted["allow_secure_boot"] and not facts["driver_loaded"]:
        yield Objection(
            "secure boot",
            "Secure Boot is on, so the kernel would refuse the driver's module, which is built on the host.",
            "Turn it off in the firmware; or enrol a machine owner key (mokutil --import, at the console) and set "
            "preflight_allow_secure_boot: true.",
        )


def of_system(system: Mapping[str, str], supported: Mapping[str, list[str]]) -> Iterator[Objection]:
    """The operating system, the processor and Python."""
    if system["version"] not in supported.get(system["id"], []):
        known = ", ".join(f"{key} {' and '.join(values)}" for key, values in supported.items())
        what = f"It runs {system['name']}; supported are {known}."
        yield Objection("system", what, "Reinstall it with one of these.")
    if system["machine"] != "x86_64":
        what = f"Its processor is {system['machine']}; supported is x86_64."
        yield Objection("system", what, "Take this host out of the inventory.")
    if tuple(int(part) for part in system["python"].split(".")[:2]) < PYTHON:
        what = f"Its Python is {system['python']}; 3.9 or later is needed."
        yield Objection("system", what, "Install a later python3.")


def of_disks(free: Mapping[str, int], sizes: Mapping[str, Any], reserve: int | None) -> Iterator[Objection]:
    """Room for what a first bootstrap installs; with a `reserve`, of a host that had one, only that."""
    for path, size in sizes.items():
        needed = int(size) if reserve is None else min(reserve, int(size))
        if free[path] < needed:
            yield Objection(
                "disk",
                f"{free[path] / GIB:.1f} GiB are free at {path}; {needed / GIB:.1f} GiB are needed"
                f"{'' if reserve is None else ' to keep going'}.",
                f"Free some (du -xh {path} | sort -h | tail shows where it went), or mount a larger disk.",
            )


def of_hardware(name: str, profiles: Mapping[str, Any], seen: Iterable[Tuple[str, str]]) -> Iterator[Objection]:
    """GPUs and NVSwitches on the bus, by class and device id, against the profile's."""
    wanted, devices = profiles[name], list(seen)
    gpu_names = {profile["gpus"]["pci_device"]: profile["gpus"]["name"] for profile in profiles.values()}
    gpus = Counter(device for kind, device in devices if kind.startswith(("0x0302", "0x0300")))
    model, count = wanted["gpus"]["pci_device"], wanted["gpus"]["count"]
    if gpus != Counter({model: count}):
        fits = [key for key, p in profiles.items() if gpus == Counter({p["gpus"]["pci_device"]: p["gpus"]["count"]})]
        expected = count_text(Counter({model: count}), gpu_names)
        yield Objection(
            "hardware",
            f"hardware_profile {name} has {expected}; the PCI bus shows {count_text(gpus, gpu_names)}.",
            f"If that is right, set hardware_profile: {fits[0]}."
            if fits
            else "Compare with lspci -d 10de: on the host; a missing GPU may come back with a power cycle (not a mere "
            "reboot), or needs to be reseated. If the host is meant to be so, choose another hardware_profile.",
        )
    switches = wanted["nvswitches"]
    bridges = sum(device == switches["pci_device"] for kind, device in devices if kind.startswith("0x0680"))
    if bridges != switches["count"]:
        yield Objection(
            "hardware",
            f"hardware_profile {name} has {switches['count']} NVSwitches; {bridges} are on the PCI bus. Without all of "
            "them the GPUs cannot reach each other.",
            "Power-cycle the host; if that does not help, have it repaired.",
        )


def count_text(devices: Counter[str], gpu_names: Mapping[str, str]) -> str:
    """The devices in words: "4 GPUs 0x2329 (NVIDIA H20)"."""
    words = [f"{count} GPUs {key} ({gpu_names.get(key, 'of no known profile')})" for key, count in devices.items()]
    return " and ".join(words) or "no GPU"


def of_memory(name: str, memory: int, minimum_gib: int) -> Iterator[Objection]:
    """The host's memory against the profile's."""
    if memory / GIB < minimum_gib:
        what = f"It has {memory / GIB:.0f} GiB of memory; hardware_profile {name} has at least {minimum_gib} GiB."
        yield Objection("memory", what, "A memory module may have failed: look at dmidecode -t memory.")


def of_clock(skew: float, allowed: float, other: str = "the controller's") -> Iterator[Objection]:
    """How far the host's clock is ahead of another: registries' certificates and tokens depend on it."""
    if allowed and abs(skew) > allowed:
        apart = f"{abs(skew):.0f} s" if abs(skew) >= 10 else f"{abs(skew):.1f} s"
        what = f"Its clock is {apart} {'ahead of' if skew > 0 else 'behind'} {other}."
        yield Objection("clock", what, "Look at timedatectl; install and start systemd-timesyncd or chrony.")
