"""The device nodes that nvidia-modprobe makes: there while the driver is loaded, gone after it."""

from __future__ import annotations

import os
import stat

import state

FRONTEND, UVM = 195, 238


def make(hardware: state.Hardware) -> None:
    if state.state_path() != state.INSIDE:  # not in a host: leave this machine's /dev alone
        return
    wanted = {}
    if hardware["driver"]["loaded"]:
        wanted = {f"/dev/nvidia{gpu['index']}": (FRONTEND, gpu["index"]) for gpu in hardware["gpus"]}
        wanted["/dev/nvidiactl"] = (FRONTEND, 255)
    if "nvidia_uvm" in hardware["modules"]:
        wanted |= {"/dev/nvidia-uvm": (UVM, 0), "/dev/nvidia-uvm-tools": (UVM, 1)}
    present = {f"/dev/{name}" for name in os.listdir("/dev") if name.startswith("nvidia")}
    for path in present - set(wanted):
        os.unlink(path)
    for path in set(wanted) - present:
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(*wanted[path]))
            os.chmod(path, 0o666)  # noqa: S103  # as the driver's DeviceFileMode says
        except PermissionError:  # where a container may not make device nodes, there are none
            return
