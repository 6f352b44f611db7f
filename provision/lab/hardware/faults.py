"""Breaking a simulated host on purpose, and mending it: what `provision lab break` and `mend` do.

A fault does what the real thing does, where the real thing shows: the state of the hardware, the host's own files and
units, the machine's end of its cable. Applying one twice is applying it once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from provision.errors import LabError
from provision.lab import process
from provision.lab.hardware import clock, packages, state
from provision.lab.host import LabHost

LOST_GPU, ECC_GPU, DOWN_PORT = 3, 1, 1  # which card or port it hits, always the same one
_FULL = "/var/tmp/lab-disk-full"  # noqa: S108  # inside a simulated host
_APT_UNIT = "lab-apt-locked.service"
_HOLD_APT = """
import fcntl, signal
open("/proc/self/comm", "w").write("unattended-upgr")
names = "dpkg/lock-frontend", "dpkg/lock"
locks = [open(f"/var/lib/{name}", "w") for name in names]
for lock in locks:
    fcntl.lockf(lock, fcntl.LOCK_EX)
signal.pause()
"""
# Blocks are taken without being written, in ever smaller pieces, down to what only root may use.
_FILL = """
import os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY, 0o600)
size, piece = os.fstat(file).st_size, 2 ** 40
while piece >= 4096:
    try:
        os.posix_fallocate(file, size, piece)
        size += piece
    except OSError:
        piece //= 2
"""


@dataclass(frozen=True)
class Fault:
    """One way in which a host breaks: what it is, how it is done, how it is undone."""

    help: str
    apply: Callable[[LabHost], None]
    mend: Callable[[LabHost], None]


def _gpu_lost(host: LabHost) -> None:
    with state.Change(str(host.state_file)) as hardware:
        gpu = _card(host, hardware, LOST_GPU)
        gpu["lost"] = True
        loaded = hardware["driver"]["loaded"]
    bus = gpu["bus_id"]
    if loaded:
        _kernel_says(
            host, f"NVRM: Xid (PCI:{bus[:-2]}): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
        )
        _kernel_says(host, f"NVRM: GPU {bus}: GPU has fallen off the bus.")


def _gpu_found(host: LabHost) -> None:
    with state.Change(str(host.state_file)) as hardware:
        _card(host, hardware, LOST_GPU)["lost"] = False


def _ecc_error(host: LabHost) -> None:
    with state.Change(str(host.state_file)) as hardware:
        gpu = _card(host, hardware, ECC_GPU)
        for kind in ("volatile", "aggregate"):
            gpu["ecc_errors"][kind]["dram_uncorrectable"] = 1
        gpu["remapped_rows"]["pending"] = 1
        loaded = hardware["driver"]["loaded"]
    if loaded:
        where, nobody = f"NVRM: Xid (PCI:{gpu['bus_id'][:-2]})", "pid='<unknown>', name=<unknown>"
        row = "Row Remapper: New row marked for remapping, reset gpu to activate."
        _kernel_says(host, f"{where}: 63, {nobody}, {row}")
        _kernel_says(host, f"{where}: 94, {nobody}, Contained: FB uncorrectable error.")


def _ecc_mended(host: LabHost) -> None:
    with state.Change(str(host.state_file)) as hardware:
        gpu = _card(host, hardware, ECC_GPU)
        for kind in ("volatile", "aggregate"):
            gpu["ecc_errors"][kind]["dram_uncorrectable"] = 0
        gpu["remapped_rows"].update(pending=0, uncorrectable=0)


def _fabric_stopped(host: LabHost) -> None:
    _require_fabric_manager(host)
    host.run(["systemctl", "stop", "nvidia-fabricmanager.service"])


def _fabric_started(host: LabHost) -> None:
    _require_fabric_manager(host)
    host.run(["systemctl", "restart", "nvidia-fabricmanager.service"])


def _fabric_version(host: LabHost) -> None:
    _require_fabric_manager(host)
    version = _installed(host, "nvidia-fabricmanager")
    if version != _loaded(host):
        return
    _apt_install(host, [f"nvidia-fabricmanager={_one_patch_off(version)}-1"])
    host.run(["systemctl", "restart", "nvidia-fabricmanager.service"], check=False)  # it refuses: that is the fault


def _fabric_version_mended(host: LabHost) -> None:
    _require_fabric_manager(host)
    _apt_install(host, [f"nvidia-fabricmanager={_loaded(host)}-1"])
    host.run(["systemctl", "restart", "nvidia-fabricmanager.service"])


def _package_upgraded(host: LabHost) -> None:
    version = _installed(host, "nvidia-driver-cuda")
    with state.Change(str(host.state_file)) as hardware:
        if "package-upgraded" in hardware["faults"]:
            return
        hardware["faults"]["package-upgraded"] = version
    _apt_install(host, _everything(host, version, _another(version)))


def _package_downgraded(host: LabHost) -> None:
    with state.Change(str(host.state_file)) as hardware:
        version = hardware["faults"].pop("package-upgraded", None)
    if version:
        _apt_install(host, _everything(host, _installed(host, "nvidia-driver-cuda"), version))


def _module_build_fails(host: LabHost) -> None:
    with state.Change(str(host.state_file)) as hardware:
        hardware["faults"]["module-build-fails"] = hardware["driver"]["installed"]


def _module_build_works(host: LabHost) -> None:
    with state.Change(str(host.state_file)) as hardware:
        hardware["faults"].pop("module-build-fails", None)


def _gpudirect_off(host: LabHost) -> None:
    _flavour(host, "nvidia-kernel-dkms", "proprietary")


def _gpudirect_on(host: LabHost) -> None:
    _flavour(host, "nvidia-kernel-open-dkms", "open")


def _flavour(host: LabHost, package: str, flavour: str) -> None:
    """Have the kernel modules of a flavour, by apt, and loaded as after the next boot."""
    if not _installed(host, package):
        meta = {"open": "nvidia-open", "proprietary": "cuda-drivers"}[flavour]
        _apt_install(host, [f"{name}={_loaded(host)}-1" for name in (package, meta)])
    with state.Change(str(host.state_file)) as hardware:
        hardware["driver"]["loaded_flavour"] = flavour
        hardware["modules"] = [name for name in hardware["modules"] if name != "nvidia_peermem"]


def _port(host: LabHost, link: str) -> None:
    with state.Change(str(host.state_file)) as hardware:
        ports = list(hardware["rdma"].values())
        if len(ports) <= DOWN_PORT:
            raise LabError(f"{host.name} has no RDMA port to take down: its hardware profile has {len(ports)}.")
        ports[DOWN_PORT]["link"] = link


def _disk_full(host: LabHost) -> None:
    host.run(["/usr/bin/python3", "-c", _FILL, _FULL])


def _disk_freed(host: LabHost) -> None:
    host.run(["rm", "--force", _FULL])


def _apt_locked(host: LabHost) -> None:
    if host.run(["systemctl", "is-active", _APT_UNIT], check=False).returncode:
        host.run(["systemd-run", "--quiet", "--collect", f"--unit={_APT_UNIT}", "/usr/bin/python3", "-c", _HOLD_APT])


def _card(host: LabHost, hardware: dict[str, Any], index: int) -> dict[str, Any]:
    if not hardware["gpus"]:
        raise LabError(f"{host.name} has no GPUs that could break: its hardware profile is {host.profile}.")
    gpu: dict[str, Any] = hardware["gpus"][index]
    return gpu


def _kernel_says(host: LabHost, text: str) -> None:
    """In the host's own dmesg, and in its journal (there as from `kernel`, though not by the kernel's transport)."""
    with state.Change(str(host.state_file)) as hardware:
        state.log_kernel(hardware, text)
    host.run(["logger", "--priority", "kern.err", "--tag", "kernel", text])


def _require_fabric_manager(host: LabHost) -> None:
    if not state.has_nvswitches(state.read(str(host.state_file))):
        raise LabError(f"{host.name} needs no Fabric Manager: its hardware profile {host.profile} has no NVSwitches.")
    if not _installed(host, "nvidia-fabricmanager"):
        raise LabError(f"Fabric Manager is not installed on {host.name} yet. First: provision bootstrap")


def _installed(host: LabHost, package: str) -> str:
    """The driver's version of an installed package, without Debian's revision; empty where it is not installed."""
    done = host.run(["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Version}", package], check=False)
    status, _, version = done.stdout.partition(" ")
    return version.removesuffix("-1") if status == "installed" else ""


def _loaded(host: LabHost) -> str:
    loaded: str | None = state.read(str(host.state_file))["driver"]["loaded"]
    if loaded is None:
        raise LabError(f"No driver is loaded on {host.name} yet. First: provision bootstrap")
    return loaded


def _another(version: str) -> str:
    if not version:
        raise LabError("The driver is not installed on this host yet. First: provision bootstrap")
    return next(each for each in reversed(packages.DRIVERS) if each != version)


def _one_patch_off(version: str) -> str:
    """The version of the same branch that is nearest to one: nobody sees the difference at a glance."""
    place = packages.DRIVERS.index(version) if version in packages.DRIVERS else 0
    return packages.DRIVERS[place - 1 if place else 1]


def _everything(host: LabHost, old: str, new: str) -> list[str]:
    """Every installed package of one driver version, at another one."""
    names = [package.name for package in packages.driver(old) if "pinning" not in package.name]
    return [f"{name}={new}-1" for name in names if _installed(host, name)]


def _apt_install(host: LabHost, wanted: list[str]) -> None:
    """As somebody does who does not care for holds and pins; dpkg.log and apt's history tell of it."""
    careless = ["--allow-change-held-packages", "--allow-downgrades", "--option", "Dpkg::Options::=--force-confold"]
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    host.run([*environment, "apt-get", "install", "--yes", "--quiet=2", *careless, *wanted])


FAULTS: dict[str, Fault] = {
    "gpu-lost": Fault(f"GPU {LOST_GPU} falls off the bus (Xid 79); a reboot brings it back", _gpu_lost, _gpu_found),
    "ecc-error": Fault(
        f"an uncorrectable memory error on GPU {ECC_GPU}, its row not yet remapped", _ecc_error, _ecc_mended
    ),
    "fabric-stopped": Fault("Fabric Manager is stopped", _fabric_stopped, _fabric_started),
    "fabric-version": Fault(
        "Fabric Manager one patch off the driver's version", _fabric_version, _fabric_version_mended
    ),
    "module-build-fails": Fault(
        "no kernel module of another driver than the installed one can be built",
        _module_build_fails,
        _module_build_works,
    ),
    "package-upgraded": Fault(
        "the driver's packages are upgraded past hold and pin, the old module still loaded",
        _package_upgraded,
        _package_downgraded,
    ),
    "gpudirect-off": Fault(
        "the driver's kernel modules are the proprietary ones, by apt, and nvidia_peermem is not loaded",
        _gpudirect_off,
        _gpudirect_on,
    ),
    "ib-link-down": Fault(
        "the second RDMA port loses its link", lambda host: _port(host, "down"), lambda host: _port(host, "up")
    ),
    "link-down": Fault(
        "the network cable is pulled",
        lambda host: _cable(host, "down"),
        lambda host: _cable(host, "up"),
    ),
    "disk-full": Fault("not a byte is left on the disk", _disk_full, _disk_freed),
    "clock-skew": Fault(
        f"the clock is {clock.SKEW} seconds ahead for all that starts from now on", clock.skew, clock.correct
    ),
    "sshd-gone": Fault(
        "no SSH daemon until the next boot",
        lambda host: _units(host, ["mask", "--runtime", "--now", "ssh.service"]),
        lambda host: _units(host, ["unmask", "--runtime", "ssh.service"], ["start", "ssh.service"]),
    ),
    "hang-at-reboot": Fault(
        "the next reboot does not come back",
        lambda host: host.hold_file.touch(),
        lambda host: host.hold_file.unlink(missing_ok=True),
    ),
    "apt-locked": Fault(
        "another process holds apt's locks",
        _apt_locked,
        lambda host: _units(host, ["stop", _APT_UNIT], check=False),
    ),
}


def _cable(host: LabHost, state_wanted: str) -> None:
    process.call(["ip", "link", "set", host.veth, state_wanted])


def _units(host: LabHost, *commands: list[str], check: bool = True) -> None:
    for command in commands:
        host.run(["systemctl", *command], check=check)
