#!/usr/bin/python
"""Ansible module: one exact version of NVIDIA's driver: its packages, their hold, and the kernel module that runs."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import shutil
from pathlib import Path
from typing import Any, Iterable, Iterator

from ansible.module_utils import provision_pci as pci
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_apt import (
    Package,
    fetch_lists,
    has_lists,
    hold_changes,
    install,
    installed,
    lost_dependencies,
    satisfies,
    unoffered,
)
from ansible.module_utils.provision_driver import (
    KernelModule,
    built_module,
    fetch_key,
    in_words,
    is_nouveau_busy,
    is_nvidias,
    kernels,
    loaded_module,
    loaded_version,
    next_kernel,
    number,
    repository_text,
    told_apart,
)
from ansible.module_utils.provision_host import Change, HostError, absent_change, converge, file_change, read_text, run
from ansible.module_utils.provision_look import is_secure_boot
from ansible.module_utils.provision_transient import after

DOCUMENTATION = r"""
module: nvidia_driver
short_description: Converges NVIDIA's driver to one exact version
description:
  - Adds the repository, pins and installs the packages in exactly the version asked for (up or down), together with
    every package of the driver that is installed in another version; removes what belongs to the other flavour of
    kernel modules, to another branch, to another origin, or to NVSwitches that this host does not have; holds all of
    them, and loads the kernel module if none is loaded. The installation is the transient unit C(provision-driver),
    which an interrupted run leaves at work and the next waits for.
  - A kernel module of another version or flavour that is loaded already can only be replaced by a reboot. Then, unless
    O(reboot_allowed), the module stops before it changes anything, so that a running server keeps a driver whose parts
    fit each other. It never reboots by itself.
  - If the installation fails while another driver is loaded, the packages of that one are put back. It fails as well if
    there is then no kernel module for the kernel that the next boot starts, since it is that boot that is to load it.
options:
  version:
    description: The driver's version, such as V(580.126.20).
    type: str
    required: true
  minimum:
    description: The oldest version that is installed; an older O(version) is refused.
    type: str
    default: ""
  packages:
    description: Packages to install in this version.
    type: list
    elements: str
    required: true
  kernel_modules:
    description: The flavour of the kernel modules.
    type: str
    choices: [open, proprietary]
    default: open
  fabric_packages:
    description: Packages of Fabric Manager, installed in this version.
    type: list
    elements: str
    default: []
  fabric:
    description: Whether the GPUs are joined by NVSwitches. Where they are not, Fabric Manager is removed.
    type: bool
    default: false
  pin:
    description:
      - How apt is kept at this version. V(apt) writes preferences of our own, V(package) installs NVIDIA's
        C(nvidia-driver-pinning-VERSION).
    type: str
    choices: [apt, package]
    default: apt
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
    description:
      - Whether the headers are installed of the kernel that runs and of the one that the next boot starts, for which
        the kernel module is built. Where apt does not offer them, nothing is changed.
    type: bool
    default: true
  reboot_allowed:
    description: Whether the caller will reboot the host if another module than the wanted one is loaded.
    type: bool
    default: false
  reboot_planned:
    description: Whether the plan that the run applies names that reboot; true for a run that applies none.
    type: bool
    default: true
  lock_timeout:
    description: Seconds to wait for another process that holds apt's lock.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
    details: Which headers apt offers is told from the lists that it has; apply fetches them anew where they lack some.
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
"""

KEYRING = "/etc/apt/keyrings/provision-nvidia.asc"
PREFERENCES = "/etc/apt/preferences.d/provision-nvidia"
SOURCES = "/etc/apt/sources.list.d/provision-nvidia.sources"
UNIT = "provision-driver"
# Up and down, past the holds that are ours. What goes takes its settings along: a pin is one, and would go on working.
OPTIONS = ("--allow-downgrades", "--allow-change-held-packages", "--purge")
PINNING = "nvidia-driver-pinning-"
# Packages that bring one flavour of the kernel modules, or ask for it, in NVIDIA's repositories for Debian and Ubuntu.
FLAVOURS = {
    "open": r"nvidia-open(-\d+)?|nvidia-kernel-open-dkms|nvidia-(dkms|driver|kernel-source)(-\d+)?-open",
    "proprietary": r"cuda-drivers(-\d+)?|nvidia-kernel-dkms|nvidia-dkms(-\d+)?|nvidia-(driver|kernel-source)-\d+",
}
# Speaks to any driver; hwloc (Open MPI) brings it along, from Ubuntu's archive in a version of its own (510.47.03).
ANY_DRIVER = ("libxnvctrl0",)
FABRIC = r"nvidia-fabric-?manager(-dev)?(-\d+)?|libnvidia-nscq(-\d+)?"


def in_family(name: str, family: list[str]) -> bool:
    """Whether a package is one of those that belong to a driver."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in family)


def drivers_own(present: dict[str, Package], family: list[str]) -> dict[str, Package]:
    """The installed packages of a driver: by name, and by a version such as 580.126.20-1, which others do not have."""
    return {
        name: package
        for name, package in present.items()
        if in_family(name, family)
        and name not in ANY_DRIVER
        and not name.startswith(PINNING)
        and re.match(r"\d{3}\.\d+(\.\d+)?-", package.version)
    }


def why_not(name: str, wanted: dict[str, Any]) -> str:
    """Why a package of a driver may not stay beside the wanted ones; empty for one that may."""
    if name in wanted["packages"] or (wanted["fabric"] and name in wanted["fabric_packages"]):
        return ""
    version, branch = wanted["version"], wanted["version"].split(".")[0]
    other = "proprietary" if wanted["kernel_modules"] == "open" else "open"
    if re.fullmatch(FLAVOURS[other], name):
        return f"{other} kernel modules"
    if not wanted["fabric"] and re.fullmatch(FABRIC, name):
        return "no NVSwitches here"
    if name.startswith(PINNING):  # with NVIDIA's pin, one takes the place of the other before
        return "another pin" if wanted["pin"] == "apt" else ""
    named = re.search(r"-(\d{3}(?:\.\d+)*)(-server)?(-open)?$", name)
    if named and (named[2] or named[1] not in (branch, version)):
        return "another branch or origin"
    return ""


def unwanted_packages(wanted: dict[str, Any], present: dict[str, Package]) -> dict[str, str]:
    """The installed packages of drivers that must go, each with the reason."""
    pins = [name for name in present if name.startswith(PINNING)]
    found = {name: why_not(name, wanted) for name in (*drivers_own(present, wanted["family"]), *pins)}
    return {name: why for name, why in sorted(found.items()) if why}


def headers_of(kernel: str) -> str:
    """The package with which modules are built for a kernel."""
    return f"linux-headers-{kernel}"


def wanted_packages(wanted: dict[str, Any], present: dict[str, Package]) -> dict[str, str]:
    """What must be installed, and in which version, because it is not."""
    exact = f"{wanted['version']}-*"
    asked = wanted["packages"] + (wanted["fabric_packages"] if wanted["fabric"] else [])
    own, gone = drivers_own(present, wanted["family"]), unwanted_packages(wanted, present)
    names = {**dict.fromkeys(asked, exact), **dict.fromkeys(own.keys() - gone.keys(), exact)}
    if wanted["kernel_headers"]:
        names.update({headers_of(kernel): "" for kernel in kernels()})
    for name in lost_dependencies(names, present):
        if name not in gone:
            names[name] = exact if in_family(name, wanted["family"]) else ""
    return {name: version for name, version in names.items() if not satisfies(present.get(name), version)}


def plan_repository(wanted: dict[str, Any], check_mode: bool) -> Iterator[Change]:
    """The key, the source of the packages, and the pin: they exist in one version on this host, up or down."""
    url, text = repository_text(wanted["url"], wanted["suite"], wanted["components"], KEYRING)
    there = read_text(KEYRING) or ""
    known = there if is_nvidias(there) else ""
    key = wanted["key"] or known or ("(NVIDIA's key)\n" if check_mode else fetch_key(url))
    yield from file_change(KEYRING, key)
    yield from file_change(SOURCES, text)
    if wanted["pin"] == "package":
        yield from absent_change(PREFERENCES)
    else:
        yield from file_change(PREFERENCES, f"# Written by provision (role driver).\n{pin_text(wanted)}")


def pin_text(wanted: dict[str, Any]) -> str:
    """What keeps apt at one version of everything that belongs to a driver, up or down."""
    names = " ".join(wanted["family"])
    return f"Package: {names}\nPin: version {wanted['version']}-*\nPin-Priority: 1001\n"


def plan_pinning(wanted: dict[str, Any]) -> Iterator[Change]:
    """NVIDIA's own pin, first and by itself: only then does apt choose this version of what the packages need."""
    name, present = f"{PINNING}{wanted['version']}", installed()
    if wanted["pin"] != "package" or satisfies(present.get(name), ""):
        return
    others = [other for other in present if other.startswith(PINNING)]
    yield Change(
        f"Installed {name}.",
        lambda: install({name: ""}, wanted["lock_timeout"], UNIT, OPTIONS, alone=True, without=others),
        name,
        "".join(f"{other}: {present[other].version}\n" for other in others) or "absent\n",
        "installed\n",
    )


def transact(wanted: dict[str, Any], missing: dict[str, str], gone: Iterable[str]) -> None:
    """One transaction that starts no service: Fabric Manager without the kernel module would only fail.

    It has succeeded when the kernel that is to load the module has it. What the packages build may leave that one out.
    """
    before = installed()
    with or_put_back(wanted, before):
        install(missing, wanted["lock_timeout"], UNIT, OPTIONS, alone=True, without=list(gone))
        for kernel in unbuilt(wanted):
            build(wanted, kernel)


@contextlib.contextmanager
def or_put_back(wanted: dict[str, Any], before: dict[str, Package]) -> Iterator[None]:
    """If this fails while another driver is loaded, put that one's packages back, so that what starts next works."""
    loaded = loaded_version()
    try:
        yield
    except HostError as error:
        story = f"{error}{headers_hint(wanted, str(error))}"
        if loaded not in ("", wanted["version"]):
            story = put_back(wanted, loaded, before, story)
        raise HostError(story) from None


def told(kernel: str) -> str:
    """A kernel, and why it needs the module."""
    return f"Linux {kernel}, which {'runs' if kernel == os.uname().release else 'the next boot starts'}"


def without_headers(wanted: dict[str, Any]) -> list[str]:
    """The kernels whose headers are wanted and not there."""
    present = installed()
    return [k for k in kernels() if wanted["kernel_headers"] and not satisfies(present.get(headers_of(k)), "")]


def headers_hint(wanted: dict[str, Any], error: str) -> str:
    """What to do about a kernel so old that the repositories no longer have its headers."""
    pattern = r"(Unable to locate package|no installation candidate).*linux-headers|linux-headers.*no inst"
    return f"\n{headers_advice(without_headers(wanted))}" if re.search(pattern, error) else ""


def headers_advice(lacking: list[str]) -> str:
    """What it means that the headers of these kernels cannot be had, and what to do."""
    spare = "reboot the host" if os.uname().release in lacking else f"or remove linux-image-{next_kernel()}"
    return (
        f"The repositories do not have the headers of {', and of '.join(map(told, lacking))}: the driver's module "
        "could not be built for it, and the GPUs would be gone there. Install the present kernel with its headers "
        f"(linux-image-amd64 and linux-headers-amd64; on Ubuntu linux-generic), {spare}, and run again."
    )


def refuse_without_headers(wanted: dict[str, Any], check_mode: bool) -> None:
    """Stop before anything is touched, where the headers of a kernel that needs the module cannot be had.

    Where the lists cannot be fetched, that is not known, and apt says in its transaction what is wrong with them.
    """
    lacking = without_headers(wanted)
    if not lacking or (check_mode and not has_lists()):
        return
    names = [headers_of(kernel) for kernel in lacking]
    lost = unoffered(names)
    if lost and not check_mode:
        lost = unoffered(names) if fetch_lists(wanted["lock_timeout"]) else []
    if lost:
        advice = headers_advice([kernel for kernel in lacking if headers_of(kernel) in lost])
        raise HostError(f"Driver {wanted['version']} was not installed, nothing was changed. {advice}")


def put_back(wanted: dict[str, Any], loaded: str, before: dict[str, Package], error: str) -> str:
    """Install what belongs to the loaded driver again; the whole story of the failure, with what to do."""
    own, now = drivers_own(before, wanted["family"]), installed()
    was = {name: package.version for name, package in own.items() if package.version.startswith(f"{loaded}-")}
    story = f"Driver {wanted['version']} was not installed. {error}\n"
    steps = f"Mend that and run again, or set the driver's version back to {loaded}."
    is_old = bool(was) or not own  # else an earlier run was killed after its transaction
    new = drivers_own(now, wanted["family"]).keys() - own.keys()
    if is_old and {name: now.get(name) for name in own} == own and not new:
        return f"{story}No package was changed; driver {loaded} is loaded and goes on working. {steps}"
    # A run that was killed in the middle has forgotten which packages there were: then those that are there now, and
    # the ones that were to be replaced, in the loaded version.
    whole = was or dict.fromkeys(drivers_own(now, wanted["family"]).keys() | set(wanted["packages"]), f"{loaded}-*")
    strangers = (drivers_own(now, wanted["family"]).keys() - whole.keys()) | headers_brought(before, now)
    try:
        # Not past this version's pin, which is there already: names and versions are all given.
        install(whole, wanted["lock_timeout"], UNIT, OPTIONS, alone=True, without=sorted(strangers))
        run(["apt-mark", "hold", *sorted(whole)])
    except HostError as second:
        names = " ".join(sorted(f"{name}={version}" for name, version in whole.items()))
        return (
            f"{story}Driver {loaded} is still loaded, so what runs goes on, but what starts new on its GPUs fails "
            f"until its packages are whole again, and putting them back failed too. {second}\n"
            f"Do not reboot this host. By hand: apt-get install {' '.join(OPTIONS)} {names}"
        )
    return f"{story}The packages of driver {loaded}, which is loaded, are back, and it goes on working. {steps}"


def headers_brought(before: dict[str, Package], now: dict[str, Package]) -> set[str]:
    """The headers of the next boot's kernel, if the transaction brought them.

    With them the packages that are put back would have to be built for that kernel too, which may be too new for them.
    The headers of the running kernel they need.
    """
    name = headers_of(next_kernel())
    is_new = bool(before) and name in now and name not in before
    return {name} if is_new and next_kernel() != os.uname().release else set()


def plan_packages(wanted: dict[str, Any]) -> Iterator[Change]:
    """One transaction for all that is missing, of another version, or not to be; then the hold."""
    present = installed()
    missing, gone = wanted_packages(wanted, present), unwanted_packages(wanted, present)
    if missing or gone:
        changes = [*missing_change(wanted, missing, present), *gone_change(gone, present)]
        changes[0].act = lambda: transact(wanted, missing, gone)
        yield from changes
        # Holding what was just installed is part of it, whatever apt makes of an earlier hold: both modes say the same.
        present = {**installed(), **dict.fromkeys(missing, Package("000.0-", held=False))}
        present = {name: package for name, package in present.items() if name not in gone}
    own = drivers_own(present, wanted["family"])
    if wanted["pin"] == "package":
        pin = f"{PINNING}{wanted['version']}"
        own[pin] = present.get(pin, Package("", held=False))
    free = [name for name, package in own.items() if not package.held]
    for change in hold_changes(sorted(free), held=True):
        change.action = f"Held the packages of driver {wanted['version']} against upgrades."
        yield change


def asked(wanted: dict[str, Any]) -> KernelModule:
    """The kernel module that is wanted."""
    return KernelModule(wanted["version"], wanted["kernel_modules"])


def is_other_loaded(wanted: dict[str, Any]) -> bool:
    """Whether a kernel module of another version or flavour than the wanted one is loaded."""
    loaded = loaded_module()
    return bool(loaded.version) and loaded != asked(wanted)


def missing_change(wanted: dict[str, Any], missing: dict[str, str], present: dict[str, Package]) -> Iterator[Change]:
    """What is to be installed, as a change."""
    if missing:
        ours = [name for name, version in missing.items() if version]
        new, differing = (sorted(name for name in ours if (name in present) is there) for there in (False, True))
        others = sorted(missing.keys() - set(ours))  # headers, and what the packages need of the system
        parts = [f"Changed {', '.join(differing)} to driver {wanted['version']}."] if differing else []
        parts += [f"Installed {', '.join(new)} of driver {wanted['version']}."] if new else []
        parts += [f"Installed {', '.join(others)}."] if others else []
        yield Change(
            " ".join(parts),
            lambda: None,
            "packages of the driver",
            "".join(f"{name}: {present[name].version if name in present else 'absent'}\n" for name in sorted(missing)),
            "".join(f"{name}: {version or 'installed'}\n" for name, version in sorted(missing.items())),
            "reboot" if is_other_loaded(wanted) else "none",
        )


def gone_change(gone: dict[str, str], present: dict[str, Package]) -> Iterator[Change]:
    """What is to be removed, as a change; it happens in the transaction that installs."""
    for reason in sorted(set(gone.values())):
        names = [name for name, why in gone.items() if why == reason]
        yield Change(
            f"Removed {', '.join(names)} ({reason}).",
            lambda: None,
            f"packages of the driver: {reason}",
            "".join(f"{name}: {present[name].version}\n" for name in names),
            "".join(f"{name}: absent\n" for name in names),
        )


def load() -> None:
    """Load the kernel module, after nouveau has given up the GPUs."""
    if Path("/sys/module/nouveau").is_dir():
        run(["modprobe", "--remove", "nouveau"], check=False)
    done = run(["modprobe", "nvidia"], check=False)
    if done.rc == 0 or Path("/sys/module/nouveau").is_dir():
        return
    said = f"The driver's kernel module does not load: {done.err.strip()}."
    if "Key was rejected" in done.err or is_secure_boot():
        raise HostError(
            f"{said} Secure Boot is on, and the module, which was built on this host, is signed with a key that the "
            "firmware does not know. Either turn Secure Boot off in the firmware; or enrol the key: mokutil --import "
            "/var/lib/dkms/mok.pub (on Ubuntu /var/lib/shim-signed/mok/MOK.der), reboot, and confirm at the console, "
            "which cannot be done over SSH. Then run again."
        )
    raise HostError(
        f"{said} Look on the host at: dkms status; journalctl -k -g 'nvidia|NVRM'. The usual cause: no module was "
        f"built for this kernel, since linux-headers-{os.uname().release} were missing."
    )


def unbuilt(wanted: dict[str, Any]) -> list[str]:
    """The kernels without the wanted module that are to load it: the next boot's, and if none is loaded what runs."""
    loaded, module = loaded_module(), asked(wanted)
    if loaded == module or not (loaded.version or shutil.which("dkms")):
        return []
    return [kernel for kernel in ([next_kernel()] if loaded.version else kernels()) if built_module(kernel) != module]


def build(wanted: dict[str, Any], kernel: str) -> None:
    """Have DKMS build the kernel module for a kernel, and see that it did."""
    done = run(["dkms", "autoinstall", "-k", kernel], check=False)
    built = built_module(kernel)
    if built != asked(wanted):
        lines = [line.strip() for line in f"{done.out}\n{done.err}".splitlines() if line.strip()]
        raise HostError(
            f"The driver's kernel module for {told(kernel)}, is {in_words(built)}, not {in_words(asked(wanted))}: the "
            f"GPUs would be gone there. dkms said: {' '.join(lines[-5:])}\n"
            f"See more on the host at: /var/lib/dkms/nvidia/{wanted['version']}/build/make.log. If this driver cannot "
            "be built for that kernel, choose another driver, or remove that kernel so that another one starts next."
        )


def plan_builds(wanted: dict[str, Any]) -> Iterator[Change]:
    """Build the kernel module where the packages did not: they are whole, so no transaction will."""
    if wanted_packages(wanted, installed()):
        return
    for kernel in unbuilt(wanted):
        yield Change(
            f"Built the kernel module nvidia for Linux {kernel}.",
            lambda kernel=kernel: build_or_put_back(wanted, kernel),
            f"kernel module nvidia of Linux {kernel}",
            f"{in_words(built_module(kernel))}\n",
            f"{in_words(asked(wanted))}\n",
        )


def build_or_put_back(wanted: dict[str, Any], kernel: str) -> None:
    """Build it; whoever installed the packages was killed then, so that nobody knows which there were before."""
    with or_put_back(wanted, {}):
        build(wanted, kernel)


def plan_module(wanted: dict[str, Any]) -> Iterator[Change]:
    """Load the kernel module where none is loaded."""
    if not loaded_version() and not is_nouveau_busy():
        words = ("kernel module nvidia", "not loaded\n", f"{wanted['version']}\n")
        yield Change("Loaded the kernel module nvidia.", load, *words)


def refuse(wanted: dict[str, Any]) -> None:
    """Stop before anything is touched, where what is wanted cannot be, or must not be yet."""
    version, minimum = wanted["version"], wanted["minimum"]
    if minimum and number(version) < number(minimum):
        raise HostError(
            f"Driver {version} is wanted, but at least {minimum} is needed (driver_minimum_version): vLLM's wheels are "
            " built for CUDA 13.0. Raise driver in stack.lock.yml."
        )
    switches = pci.nvswitches()
    if switches and not wanted["fabric"]:
        raise HostError(
            f"{switches} NVSwitches are on the PCI bus, so the GPUs do not compute without Fabric Manager, but "
            "driver_fabric_manager is false. Set hardware_profile to what this host is."
        )
    if is_other_loaded(wanted) and not wanted["reboot_allowed"]:
        raise HostError(
            f"{told_apart(loaded_module(), asked(wanted)).capitalize()}: that takes a reboot, which is not allowed. "
            "Nothing was changed. When this host may reboot: set reboot_allowed: true for it and run provision "
            "bootstrap INVENTORY --limit with its name in the inventory."
        )
    if is_other_loaded(wanted) and not wanted["reboot_planned"]:
        raise HostError(
            f"{told_apart(loaded_module(), asked(wanted)).capitalize()}: that takes a reboot, and the plan that is "
            "applied names none of this host. Nothing was changed. Plan again: provision plan INVENTORY --out FILE "
            "names it; then apply that."
        )


def plan(wanted: dict[str, Any], check_mode: bool) -> Iterator[Change]:
    """Repository, packages, hold, kernel module."""
    refuse(wanted)
    refuse_without_headers(wanted, check_mode)
    yield from plan_repository(wanted, check_mode)
    yield from plan_pinning(wanted)
    yield from plan_packages(wanted)
    yield from plan_builds(wanted)
    yield from plan_module(wanted)


def main() -> None:
    names = {"type": "list", "elements": "str"}
    spec = {
        "version": {"type": "str", "required": True},
        "minimum": {"type": "str", "default": ""},
        "packages": {**names, "required": True},
        "kernel_modules": {"type": "str", "choices": ["open", "proprietary"], "default": "open"},
        "fabric_packages": {**names, "default": []},
        "fabric": {"type": "bool", "default": False},
        "pin": {"type": "str", "choices": ["apt", "package"], "default": "apt"},
        "family": {**names, "required": True},
        "url": {"type": "str", "required": True},
        "suite": {"type": "str", "default": "/"},
        "components": {**names, "default": []},
        "key": {"type": "str", "default": "", "no_log": False},
        "kernel_headers": {"type": "bool", "default": True},
        "reboot_allowed": {"type": "bool", "default": False},
        "reboot_planned": {"type": "bool", "default": True},
        "lock_timeout": {"type": "int", "default": 300},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    wanted, check_mode = module.params, module.check_mode
    converge(
        module,
        lambda: after(UNIT, check_mode, lambda: plan(wanted, check_mode)),
        lambda: {"loaded": loaded_version()},
        forget=["reboot_planned"],  # of this run alone
    )


if __name__ == "__main__":
    main()
