"""`nvidia-persistenced`: holds every GPU initialised, so that settings outlast the program that made them."""

from __future__ import annotations

import os
import sys

import daemon
import state

NAME = "nvidia-persistenced"
PID_FILE = "/run/nvidia-persistenced/nvidia-persistenced.pid"


def main(version: str, arguments: list[str]) -> int:
    if "--version" in arguments or "-v" in arguments:
        sys.stdout.write(f"nvidia-persistenced:  version {version}\n\n")
        return 0
    daemon.block_signals()
    hardware = daemon.load_driver()
    if hardware["driver"]["loaded"] != version:
        return daemon.fail(
            NAME,
            "Failed to query NVIDIA devices. Please ensure that the NVIDIA device files (/dev/nvidia*) exist, and that "
            f"user {os.geteuid()} has read and write permissions for those files.",
        )
    if NAME in state.living_clients(hardware):
        return daemon.fail(NAME, f"Failed to lock PID file {PID_FILE}: another instance is running.")
    persistence = "--no-persistence-mode" not in arguments
    daemon.into_background(NAME, PID_FILE)
    daemon.sign_in(NAME, persistence=persistence)
    daemon.log(NAME, f"Started ({os.getpid()})")
    for gpu in hardware["gpus"]:
        daemon.log(NAME, f"device {gpu['bus_id']} - registered")
        if persistence:
            daemon.log(NAME, f"device {gpu['bus_id']} - persistence mode enabled.")
    daemon.log(NAME, "Local RPC services initialized")
    daemon.until_terminated()
    daemon.log(NAME, "Received signal 15")
    daemon.sign_out(NAME)
    daemon.log(NAME, f"Shutdown ({os.getpid()})")
    return 0
