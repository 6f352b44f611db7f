#!/usr/bin/python
"""Ansible module: one exact version of NVIDIA's driver: its packages, their hold, and the kernel module that runs."""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_apt import Package, hold_changes, install, installed, lost_dependencies, satisfies
from ansible.module_utils.provision_driver import fetch_key, is_nvidias, loaded_version, repository_text
from ansible.module_utils.provision_host import Change, HostError, converge, file_change, read_text, run
from ansible.module_utils.provision_transient import after

DOCUMENTATION = r"""
module: nvidia_driver
short_description: Converges NVIDIA's driver to one exact version
description:
  - Adds the repository, pins and installs the packages in exactly the version asked for (up or down), together with
    every package of the driver that is installed in another version, holds all of them, and loads the kernel module if
    none is loaded. The installation is the transient unit C(provision-driver), which an interrupted run leaves at work
    and the next waits for.
  - A kernel module of another version that is loaded already can only be replaced by a reboot. Then, unless
    O(reboot_allowed), the module stops before it changes anything, so that a running server keeps a driver whose parts
    fit each other. It never reboots by itself.
options:
  version:
    description: The driver's version, such as V(580.126.20).
    type: str
    required: true
  packages:
    description: Packages to install in this version.
    type: list
    elements: str
    required: true
  family:
    description: Patterns of the names of all packages that belong to the driver.
    type: list
    elements: str
    required: true
  url:
    description: The repository; C({os}) in it becomes the host's system as NVIDIA writes it, such as C(ubuntu2404).
    type: str
    required: true
  suite:
    description: The repository's suite; V(/) for a flat one.
    type: str
    default: /
  components:
    description: The repository's components, none for a flat one.
    type: list
    elements: str
    default: []
  key:
    description: The repository's public key, armoured. Without it NVIDIA's is fetched from beside the repository.
    type: str
    default: ""
  kernel_headers:
    description: Whether the headers of the running kernel are installed, for which the kernel module is built.
    type: bool
    default: true
  reboot_allowed:
    description: Whether the caller will reboot the host if RV(reboot_reason) says so.
    type: bool
    default: false
  lock_timeout:
    description: Seconds to wait for another process that holds apt's lock.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Install the driver
  nvidia_driver:
    version: 580.126.20
    packages: [nvidia-open]
    family: [nvidia-*, libnvidia-*, libcuda1]
    url: https://developer.download.nvidia.com/compute/cuda/repos/{os}/x86_64
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: ["Installed driver 580.126.20 (nvidia-open).", "Loaded the kernel module nvidia."]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each file, and one each for packages, holds and kernel module, that differs.
  returned: always
  type: list
  elements: dict
loaded:
  description: The version of the kernel module that is loaded, empty for none.
  returned: always
  type: str
reboot_reason:
  description: Why the host must be rebooted; empty when it need not be.
  returned: always
  type: str
"""

KEYRING = "/etc/apt/keyrings/provision-nvidia.asc"
PREFERENCES = "/etc/apt/preferences.d/provision-nvidia"
SOURCES = "/etc/apt/sources.list.d/provision-nvidia.sources"
UNIT = "provision-driver"


def drivers_own(present: dict[str, Package], family: list[str]) -> dict[str, Package]:
    """The installed packages of a driver: by name, and by a version such as 580.126.20-1, which others do not have."""
    return {
        name: package
        for name, package in present.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in family)
        and re.match(r"\d{3}\.\d+(\.\d+)?-", package.version)
    }


def wanted_packages(wanted: dict[str, Any], present: dict[str, Package]) -> dict[str, str]:
    """What must be installed, and in which version, because it is not."""
    exact = f"{wanted['version']}-*"
    names = {**dict.fromkeys(wanted["packages"], exact), **dict.fromkeys(drivers_own(present, wanted["family"]), exact)}
    if wanted["kernel_headers"]:
        names[f"linux-headers-{os.uname().release}"] = ""
    for name in lost_dependencies(names, present):
        names[name] = exact if any(fnmatch.fnmatchcase(name, pattern) for pattern in wanted["family"]) else ""
    return {name: version for name, version in names.items() if not satisfies(present.get(name), version)}


def plan_repository(wanted: dict[str, Any], check_mode: bool) -> Iterator[Change]:
    """The key, the source of the packages, and the pin: they exist in one version on this host, up or down."""
    url, text = repository_text(wanted["url"], wanted["suite"], wanted["components"], KEYRING)
    there = read_text(KEYRING) or ""
    known = there if is_nvidias(there) else ""
    key = wanted["key"] or known or ("(NVIDIA's key)\n" if check_mode else fetch_key(url))
    yield from file_change(KEYRING, key)
    yield from file_change(SOURCES, text)
    names = " ".join(wanted["family"])
    pin = f"Package: {names}\nPin: version {wanted['version']}-*\nPin-Priority: 1001\n"
    yield from file_change(PREFERENCES, f"# Written by provision (role driver).\n{pin}")


def install_quietly(missing: dict[str, str], lock_timeout_s: int) -> None:
    """Install, and start nothing: Fabric Manager without the kernel module would only fail."""
    install(missing, lock_timeout_s, UNIT, ("--allow-downgrades", "--allow-change-held-packages"), alone=True)


def plan_packages(wanted: dict[str, Any]) -> Iterator[Change]:
    """One transaction for all that is missing or of another version; then the hold."""
    present = installed()
    missing = wanted_packages(wanted, present)
    if missing:
        differing = sorted(name for name in missing if name in present)
        verb = f"Changed {', '.join(differing)}" if differing else f"Installed {', '.join(sorted(missing))}"
        yield Change(
            f"{verb} {'to' if differing else 'of'} driver {wanted['version']}.",
            lambda: install_quietly(missing, wanted["lock_timeout"]),
            "packages of the driver",
            "".join(f"{name}: {present[name].version if name in present else 'absent'}\n" for name in sorted(missing)),
            "".join(f"{name}: {version or 'installed'}\n" for name, version in sorted(missing.items())),
            "reboot" if loaded_version() not in ("", wanted["version"]) else "none",
        )
        # Holding what was just installed is part of it, whatever apt makes of an earlier hold: both modes say the same.
        present = {**installed(), **dict.fromkeys(missing, Package("000.0-", held=False))}
    free = [name for name, package in drivers_own(present, wanted["family"]).items() if not package.held]
    for change in hold_changes(sorted(free), held=True):
        change.action = f"Held the packages of driver {wanted['version']} against upgrades."
        yield change


def load() -> None:
    """Load the kernel module, after nouveau has given up the GPUs."""
    if Path("/sys/module/nouveau").is_dir():
        run(["modprobe", "--remove", "nouveau"], check=False)
    done = run(["modprobe", "nvidia"], check=False)
    if done.rc != 0 and not Path("/sys/module/nouveau").is_dir():
        raise HostError(
            f"The driver's kernel module does not load: {done.err.strip()}. Look on the host at: dkms status; "
            "journalctl -k -g 'nvidia|NVRM'. Usual causes: no module was built for this kernel (headers missing), or "
            "Secure Boot refuses an unsigned one."
        )


def plan_module(version: str) -> Iterator[Change]:
    """Load the kernel module where none is loaded."""
    if not loaded_version():
        yield Change("Loaded the kernel module nvidia.", load, "kernel module nvidia", "not loaded\n", f"{version}\n")


def refuse_without_reboot(version: str, host: str) -> None:
    """Stop before anything is touched: new libraries beside an old kernel module would break what runs now."""
    if loaded_version() not in ("", version):
        raise HostError(
            f"Driver {loaded_version()} is loaded, {version} is wanted: that takes a reboot, which is not allowed. "
            f"Nothing was changed. When {host} may reboot: set driver_reboot_allowed: true for it and run "
            f"provision bootstrap INVENTORY --limit {host}"
        )


def reboot_reason(version: str) -> str:
    """Why only a reboot brings the wanted module to run."""
    seen = loaded_version()
    if seen and seen != version:
        return f"driver {seen} is loaded, {version} is installed"
    return "nouveau holds the GPUs" if not seen and Path("/sys/module/nouveau").is_dir() else ""


def plan(wanted: dict[str, Any], check_mode: bool) -> Iterator[Change]:
    """Repository, packages, hold, kernel module."""
    if not wanted["reboot_allowed"]:
        refuse_without_reboot(wanted["version"], os.uname().nodename)
    yield from plan_repository(wanted, check_mode)
    yield from plan_packages(wanted)
    yield from plan_module(wanted["version"])


def facts(wanted: dict[str, Any], check_mode: bool) -> dict[str, Any]:
    """What runs now, and whether the caller must reboot."""
    reason = reboot_reason(wanted["version"])
    if check_mode and not loaded_version():
        reason = ""  # loading is predicted to succeed; whether nouveau lets go is seen only by trying
    if reason and not wanted["reboot_allowed"]:
        raise HostError(
            f"A reboot is needed, since {reason}; it is not allowed. When {os.uname().nodename} may reboot: set "
            "driver_reboot_allowed: true for it and run again."
        )
    return {"loaded": loaded_version(), "reboot_reason": reason}


def main() -> None:
    names = {"type": "list", "elements": "str"}
    spec = {
        "version": {"type": "str", "required": True},
        "packages": {**names, "required": True},
        "family": {**names, "required": True},
        "url": {"type": "str", "required": True},
        "suite": {"type": "str", "default": "/"},
        "components": {**names, "default": []},
        "key": {"type": "str", "default": "", "no_log": False},
        "kernel_headers": {"type": "bool", "default": True},
        "reboot_allowed": {"type": "bool", "default": False},
        "lock_timeout": {"type": "int", "default": 300},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    wanted, check_mode = module.params, module.check_mode
    converge(
        module,
        lambda: after(UNIT, check_mode, lambda: plan(wanted, check_mode)),
        lambda: facts(wanted, check_mode),
    )


if __name__ == "__main__":
    main()
