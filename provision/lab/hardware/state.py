"""What the simulated hardware of one host is like at this moment: one JSON file, and what may happen to it.

This file runs in two places: as part of the package on the machine that holds the lab, and, copied as it is, behind the
simulated programs inside a host. So it needs only the standard library, and imports little of it: every call of
`nvidia-smi` pays for the imports.

Readers take the file as it stands (it is replaced as a whole, never written in place); writers hold a lock beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time

MYPY = False
if MYPY:  # typing alone would cost each program several milliseconds
    from typing import Any

    Hardware = dict[str, Any]
    Gpu = dict[str, Any]

INSIDE = "/.lab/hw/state.json"

# Modules of the driver and what each needs first; those of the InfiniBand stack come with Debian's kernel.
NVIDIA_MODULES = {
    "nvidia": [],
    "nvidia_uvm": ["nvidia"],
    "nvidia_modeset": ["nvidia"],
    "nvidia_drm": ["nvidia_modeset"],
    "nvidia_peermem": ["nvidia", "ib_core"],
}
RDMA_MODULES = ["ib_core", "ib_uverbs", "mlx5_core", "mlx5_ib", "ib_umad", "ib_cm", "rdma_cm", "rdma_ucm", "ib_ipoib"]
LOADED_AT_BOOT = ["ib_core", "ib_uverbs", "mlx5_core", "mlx5_ib"]
_SIZES = {
    "nvidia": 14381056,
    "nvidia_uvm": 2088960,
    "nvidia_modeset": 1773568,
    "nvidia_drm": 139264,
    "nouveau": 2433024,
}


def state_path() -> str:
    """Where the state lies: `LAB_STATE`, or the place where a host finds it."""
    return os.environ.get("LAB_STATE", INSIDE)


def read(path: str | None = None) -> Hardware:
    """The state as it stands. Raises OSError where there is none."""
    with open(path or state_path(), encoding="utf-8") as file:
        hardware: Hardware = json.load(file)
    return hardware


def write(path: str, hardware: Hardware) -> None:
    """Replace the state as a whole; a reader sees the old or the new one."""
    beside = f"{path}.{os.getpid()}.tmp"
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(hardware, file, indent=1)
    os.chmod(beside, 0o644)  # every user of the host may ask nvidia-smi
    os.replace(beside, path)


class Change:
    """Hold the state alone, change it, and have it written if it differs: `with Change(path) as hardware: ...`."""

    def __init__(self, path: str | None = None) -> None:
        self.path = path or state_path()

    def __enter__(self) -> Hardware:
        # Opened anew for each change: flock belongs to the opened file, and threads must exclude each other too.
        self.lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.hardware = read(self.path)
        self.before = json.dumps(self.hardware)
        return self.hardware

    def __exit__(self, failure: object, *_: object) -> None:
        try:
            if failure is None and json.dumps(self.hardware) != self.before:
                write(self.path, self.hardware)
        finally:
            os.close(self.lock)


def volatile_settings(hardware: Hardware) -> Hardware:
    """What a GPU's settings are once the driver initialises it, before anybody set anything."""
    return {
        "graphics_lock": None,
        "memory_lock": None,
        "application_clocks": None,
        "power_limit": hardware["profile"]["gpus"]["power"]["default"],
        "compute_mode": "Default",
    }


def has_nvswitches(hardware: Hardware) -> bool:
    """Whether the GPUs are joined by NVSwitches, so that a Fabric Manager must configure them."""
    return bool(hardware["profile"]["nvswitches"]["count"])


def reset_gpu(hardware: Hardware, gpu: Gpu) -> None:
    """What a reset, a reload of the driver and a reboot share: settings are lost, pending modes become current."""
    gpu.update(volatile_settings(hardware))
    gpu["persistence"] = False
    gpu["ecc_current"] = gpu["ecc_pending"]
    gpu["mig_current"] = gpu["mig_pending"]
    gpu["ecc_errors"]["volatile"] = dict.fromkeys(gpu["ecc_errors"]["volatile"], 0)
    remapped = gpu["remapped_rows"]
    remapped["uncorrectable"] += remapped["pending"]
    remapped["pending"] = 0
    gpu["fabric"] = "In Progress" if has_nvswitches(hardware) else "N/A"


def module_size(name: str) -> int:
    """The size of a loaded module in bytes, as lsmod prints it."""
    return _SIZES.get(name, 131072)


def log_kernel(hardware: Hardware, text: str) -> None:
    """A line of the host's own kernel log."""
    hardware["kernel_log"].append([time.time(), text])


def load_module(hardware: Hardware, name: str) -> str | None:
    """Load a module and those it needs; returns what the kernel objects to, None when it is loaded."""
    modules: list[str] = hardware["modules"]
    if name in modules:
        return None
    if name in NVIDIA_MODULES and not hardware["driver"]["installed"]:
        return "not found"
    for needed in NVIDIA_MODULES.get(name, []):
        objection = load_module(hardware, needed)
        if objection:
            return objection
    if name == "nvidia":
        # nouveau takes Ampere cards; it does not know Hopper, so there it sits loaded beside them without holding one.
        if "nouveau" in modules and hardware["profile"]["gpus"]["architecture"] == "Ampere":
            return "No such device"
        driver = hardware["driver"]
        driver.update(loaded=driver["installed"], loaded_flavour=driver["flavour"])
        log_kernel(hardware, "nvidia: loading out-of-tree module taints kernel.")
        log_kernel(hardware, f"NVRM: loading {module_title(hardware)}")
        for gpu in hardware["gpus"]:
            reset_gpu(hardware, gpu)
    modules.append(name)
    return None


def module_title(hardware: Hardware) -> str:
    """What the loaded driver calls itself, in the kernel's log and in /proc."""
    driver = hardware["driver"]
    is_open = driver["loaded_flavour"] == "open"
    name = "NVIDIA UNIX Open Kernel Module for x86_64" if is_open else "NVIDIA UNIX x86_64 Kernel Module"
    return f"{name}  {driver['loaded']}  Release Build  (root@{hardware['host']})"


def unload_module(hardware: Hardware, name: str) -> str | None:
    """Unload a module; returns what the kernel objects to, None when it is gone."""
    modules: list[str] = hardware["modules"]
    if name not in modules:
        return "not loaded"
    if users_of(hardware, name) or (name == "nvidia" and living_clients(hardware)):
        return "in use"
    modules.remove(name)
    if name == "nvidia":
        hardware["driver"]["loaded"] = None
    return None


def users_of(hardware: Hardware, name: str) -> list[str]:
    """The loaded modules that need this one."""
    return [user for user, needs in NVIDIA_MODULES.items() if name in needs and user in hardware["modules"]]


def living_clients(hardware: Hardware) -> dict[str, Hardware]:
    """The daemons that hold the driver open. Only a process of the same host can tell whether they still live."""
    return {name: client for name, client in hardware["clients"].items() if _lives(client)}


def _lives(client: Hardware) -> bool:
    try:
        with open(f"/proc/{client['pid']}/stat", encoding="utf-8") as file:
            return bool(file.read().rsplit(")", 1)[1].split()[19] == client["started"])
    except OSError:
        return False


def this_process() -> Hardware:
    """How a daemon signs itself in `clients`: process id and start time, so that a reused id is not taken for it."""
    with open("/proc/self/stat", encoding="utf-8") as file:
        return {"pid": os.getpid(), "started": file.read().rsplit(")", 1)[1].split()[19]}


def persistent(hardware: Hardware, gpu: Gpu) -> bool:
    """Whether the driver keeps this GPU initialised when nobody uses it: by the daemon, or by the older `-pm 1`."""
    daemon = living_clients(hardware).get("nvidia-persistenced")
    return bool(gpu["persistence"] or (daemon and daemon["persistence"]))


def forget_settings_without_persistence(hardware: Hardware) -> None:
    """The driver takes down a GPU that nobody holds, and with it go its locked clocks and its power limit."""
    for gpu in hardware["gpus"]:
        if not persistent(hardware, gpu):
            gpu.update(volatile_settings(hardware))


def reboot(hardware: Hardware) -> None:
    """What of the hardware survives until the next kernel runs, and what does not."""
    hardware.update(boots=hardware["boots"] + 1, booted=time.time(), kernel_log=[])
    hardware.update(clients={}, swaps=[], knobs={}, governors={}, registers={})
    hardware["driver"]["loaded"] = None
    hardware["modules"] = list(LOADED_AT_BOOT)
    for gpu in hardware["gpus"]:
        if hardware["profile"]["gpus"]["architecture"] == "Hopper":
            gpu["mig_pending"] = "Disabled"  # only Ampere keeps MIG mode over a reboot
        gpu["lost"] = False  # the bus is enumerated anew
        reset_gpu(hardware, gpu)
    if hardware["gpus"]:
        load_module(hardware, "nvidia" if hardware["driver"]["installed"] else "nouveau")
