#!/usr/bin/python
"""Ansible module: whether a host is what the inventory says it is, and fit to be prepared. It changes nothing."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import read_text

DOCUMENTATION = r"""
module: host_preflight
short_description: Checks that a host is what the inventory says, and says everything that is wrong at once
description:
  - Looks at the operating system, its Python, the clock, disks, memory, Secure Boot, and the GPUs and NVSwitches that
    the PCI bus shows, which needs no driver. The host is left as it is.
options:
  profile_name:
    description: The hardware profile that the host must show; empty to compare no hardware.
    type: str
    default: ""
  profiles:
    description: All known hardware profiles, by name.
    type: dict
    default: {}
  supported_os:
    description: Versions of each operating system that are supported, by the C(ID) of C(/etc/os-release).
    type: dict
    required: true
  min_free_disk:
    description: Bytes that must be free at a path before the first bootstrap, by path.
    type: dict
    default: {}
  reserve_disk:
    description: Bytes that must be free at the same paths on a host that has been bootstrapped.
    type: int
    default: 0
  check_memory:
    description: Whether the host must have the memory of its profile.
    type: bool
    default: true
  controller_time:
    description: The controller's clock, in seconds since 1970; with O(max_clock_skew) the host's must agree.
    type: float
    default: 0
  max_clock_skew:
    description: Seconds by which the clocks may differ; 0 compares none.
    type: int
    default: 0
  allow_secure_boot:
    description: Whether Secure Boot may be on.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Check that the host is fit
  host_preflight:
    supported_os: {debian: ["12"]}
    min_free_disk: {/: 21474836480}
"""

RETURN = r"""
problems:
  description: Everything that is wrong, each with what to do, as sentences.
  returned: always
  type: list
  elements: str
notes:
  description: What does not stand in the way but is worth knowing.
  returned: always
  type: list
  elements: str
found:
  description: What the host shows.
  returned: always
  type: dict
"""

GIB = 2**30
ENVIRONMENTS = "/opt/provision/env"


def os_release() -> dict[str, str]:
    """The fields of /etc/os-release."""
    lines = (line.split("=", 1) for line in (read_text("/etc/os-release") or "").splitlines() if "=" in line)
    return {key: value.strip("\"'") for key, value in lines}


def pci_devices(root: Path = Path("/sys/bus/pci/devices")) -> list[tuple[str, str]]:
    """Class and device id of every NVIDIA device on the bus, such as ("0x030200", "0x2329")."""
    found = []
    for device in sorted(root.iterdir()) if root.is_dir() else []:
        vendor, kind, name = (read_text(str(device / file)) or "" for file in ("vendor", "class", "device"))
        if vendor.strip() == "0x10de":
            found.append((kind.strip(), name.strip()))
    return found


def check_system(supported: dict[str, list[str]], release: dict[str, str]) -> Iterator[str]:
    """The operating system, the processor and Python."""
    name, version = release.get("ID", "unknown"), release.get("VERSION_ID", "unknown")
    if version not in supported.get(name, []):
        known = ", ".join(f"{key} {' and '.join(values)}" for key, values in supported.items())
        yield f"It runs {release.get('PRETTY_NAME', name)}; supported are {known}. Reinstall it with one of these."
    machine = os.uname().machine
    if machine != "x86_64":
        yield f"Its processor is {machine}; supported is x86_64. Take this host out of the inventory."
    if sys.version_info < (3, 9):
        yield f"Its Python is {sys.version.split()[0]}; 3.9 or later is needed. Install a later python3."


def check_disks(wanted: dict[str, int], reserve: int) -> Iterator[str]:
    """Room for what a first bootstrap installs; afterwards, that the disk is not about to be full."""
    bootstrapped = any(Path(ENVIRONMENTS).glob("*"))
    for path, size in wanted.items():
        place = Path(path)
        while not place.exists():
            place = place.parent
        seen = os.statvfs(place)
        free, needed = seen.f_bavail * seen.f_frsize, min(reserve, int(size)) if bootstrapped else int(size)
        if free < needed:
            yield (
                f"{free / GIB:.1f} GiB are free at {path}; {needed / GIB:.1f} GiB are needed"
                f"{' to keep going' if bootstrapped else ''}. Free some (du -xh {place} | sort -h | tail shows where "
                "it went), or mount a larger disk."
            )


def count_text(devices: Counter[str], gpu_names: dict[str, str]) -> str:
    """The devices in words: "4 GPUs 0x2329 (NVIDIA H20)"."""
    words = [f"{count} GPUs {key} ({gpu_names.get(key, 'of no known profile')})" for key, count in devices.items()]
    return " and ".join(words) or "no GPU"


def check_hardware(name: str, profiles: dict[str, Any], seen: list[tuple[str, str]]) -> Iterator[str]:
    """GPUs and NVSwitches on the bus against the profile's."""
    wanted, gpu_names = profiles[name], {p["gpus"]["pci_device"]: p["gpus"]["name"] for p in profiles.values()}
    gpus = Counter(device for kind, device in seen if kind.startswith(("0x0302", "0x0300")))
    model, count = wanted["gpus"]["pci_device"], wanted["gpus"]["count"]
    if gpus != Counter({model: count}):
        fits = [key for key, p in profiles.items() if gpus == Counter({p["gpus"]["pci_device"]: p["gpus"]["count"]})]
        step = (
            f"If that is right, set hardware_profile: {fits[0]}."
            if fits
            else "Compare with lspci -d 10de: on the host; a missing GPU may come back with a power cycle (not a mere "
            "reboot), or needs to be reseated. If the host is meant to be so, choose another hardware_profile."
        )
        expected = count_text(Counter({model: count}), gpu_names)
        yield f"hardware_profile {name} has {expected}; the PCI bus shows {count_text(gpus, gpu_names)}. {step}"
    switches = wanted["nvswitches"]
    bridges = sum(device == switches["pci_device"] for kind, device in seen if kind.startswith("0x0680"))
    if bridges != switches["count"]:
        yield (
            f"hardware_profile {name} has {switches['count']} NVSwitches; {bridges} are on the PCI bus. "
            "Without all of them the GPUs cannot reach each other. Power-cycle the host; if that does not help, have "
            "it repaired."
        )


def check_memory(name: str, minimum_gib: int) -> Iterator[str]:
    """The host's memory against the profile's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if total < minimum_gib:
        yield (
            f"It has {total:.0f} GiB of memory; hardware_profile {name} has at least {minimum_gib} GiB. "
            "A memory module may have failed: look at dmidecode -t memory."
        )


def check_clock(controller: float, allowed: int) -> Iterator[str]:
    """The host's clock against the controller's: registries' certificates and tokens depend on it."""
    skew = time.time() - controller
    if allowed and abs(skew) > allowed:
        yield (
            f"Its clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the controller's. "
            "Look at timedatectl; install and start systemd-timesyncd or chrony."
        )


def secure_boot() -> bool:
    """Whether the firmware lets only signed modules in; False where it cannot be read."""
    for variable in Path("/sys/firmware/efi/efivars").glob("SecureBoot-*"):
        return variable.read_bytes()[-1:] == b"\x01"
    return False


def check_modules(allow_secure_boot: bool) -> Iterator[str]:
    """What would keep the driver's module, built on the host, from being loaded."""
    if secure_boot() and not allow_secure_boot and not Path("/proc/driver/nvidia/version").exists():
        yield (
            "Secure Boot is on, so the kernel would refuse the driver's module, which is built on the host. Turn it "
            "off in the firmware; or enrol a machine owner key (mokutil --import, at the console) and set "
            "preflight_allow_secure_boot: true."
        )


def look(wanted: dict[str, Any]) -> tuple[list[str], list[str], dict[str, Any]]:
    """Problems, notes, and what was found."""
    release, devices, name = os_release(), pci_devices(), wanted["profile_name"]
    problems = [
        *check_system(wanted["supported_os"], release),
        *check_disks(wanted["min_free_disk"], wanted["reserve_disk"]),
    ]
    if name and name not in wanted["profiles"]:
        problems.append(f"hardware_profile {name} is not known; known are {', '.join(sorted(wanted['profiles']))}.")
    elif name:
        problems += check_hardware(name, wanted["profiles"], devices)
        if wanted["check_memory"]:
            problems += check_memory(name, wanted["profiles"][name]["min_memory_gib"])
    problems += check_clock(wanted["controller_time"], wanted["max_clock_skew"])
    problems += check_modules(wanted["allow_secure_boot"])
    nouveau = Path("/sys/module/nouveau").is_dir()
    notes = ["nouveau is loaded; the driver stage takes its place."] if nouveau else []
    found = {"os": f"{release.get('ID')} {release.get('VERSION_ID')}", "kernel": os.uname().release}
    return problems, notes, {**found, "nvidia_devices": [device for _, device in devices], "nouveau": nouveau}


def main() -> None:
    spec = {
        "profile_name": {"type": "str", "default": ""},
        "profiles": {"type": "dict", "default": {}},
        "supported_os": {"type": "dict", "required": True},
        "min_free_disk": {"type": "dict", "default": {}},
        "reserve_disk": {"type": "int", "default": 0},
        "check_memory": {"type": "bool", "default": True},
        "controller_time": {"type": "float", "default": 0.0},
        "max_clock_skew": {"type": "int", "default": 0},
        "allow_secure_boot": {"type": "bool", "default": False},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    problems, notes, found = look(module.params)
    result = {"changed": False, "problems": problems, "notes": notes, "found": found}
    if problems:
        module.fail_json(msg=" ".join(problems), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
