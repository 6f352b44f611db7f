"""`nvidia-modprobe`: loads the driver and makes its device nodes."""

from __future__ import annotations

import sys

import devices
import state


def main(version: str, arguments: list[str]) -> int:
    if {"-v", "--version"} & set(arguments):
        sys.stdout.write(f"nvidia-modprobe:  version {version}\n\n")
        return 0
    wanted = "nvidia_uvm" if {"-u", "--unified-memory"} & set(arguments) else "nvidia"
    with state.Change() as hardware:
        objection = state.load_module(hardware, wanted)
    devices.make(hardware)
    return 1 if objection else 0
