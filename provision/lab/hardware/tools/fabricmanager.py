"""`nv-fabricmanager`: joins the GPUs through the NVSwitches, and refuses any driver but that of its own version."""

from __future__ import annotations

import os
import sys
import time

import daemon
import state

NAME = "nv-fabricmanager"
PID_FILE = "/run/nvidia-fabricmanager/nv-fabricmanager.pid"
LOG = "/var/log/fabricmanager.log"
ROUTING = 0.3  # seconds that the switches take here; minutes on a cold machine


def main(version: str, arguments: list[str]) -> int:
    if {"-v", "--version"} & set(arguments):
        sys.stdout.write(f"Fabric Manager version is : {version}\n")
        return 0
    daemon.block_signals()
    hardware = daemon.load_driver()
    loaded = hardware["driver"]["loaded"]
    if loaded and loaded != version:
        return _fail(
            f"fabric manager NVIDIA GPU driver interface version {version} don't match with driver version {loaded}. "
            "Please update with matching NVIDIA driver package."
        )
    if not loaded or not state.has_nvswitches(hardware):
        return _fail(
            "request to query NVSwitch device information from NVSwitch driver failed with error:WARNING Nothing to do "
            "[NV_WARN_NOTHING_TO_DO]"
        )
    time.sleep(ROUTING)
    daemon.into_background(NAME, PID_FILE)
    daemon.sign_in(NAME)
    with state.Change() as hardware:
        for gpu in hardware["gpus"]:
            gpu["fabric"] = "Completed"
    _log(
        "Successfully configured all the available GPUs and NVSwitches to route NVLink traffic. NVLink Peer-to-Peer "
        "support will be enabled once the GPUs are successfully registered with the NVLink fabric."
    )
    daemon.until_terminated()
    daemon.sign_out(NAME)
    _log(f"Fabric Manager {version} stopped")
    return 0


def _log(text: str) -> None:
    daemon.log(NAME, text)
    with open(LOG, "a", encoding="utf-8") as file:
        file.write(f"[{time.strftime('%b %d %Y %H:%M:%S')}] [INFO] [tid {os.getpid()}] {text}\n")


def _fail(text: str) -> int:
    with open(LOG, "a", encoding="utf-8") as file:
        file.write(f"[{time.strftime('%b %d %Y %H:%M:%S')}] [ERROR] [tid {os.getpid()}] {text}\n")
    return daemon.fail(NAME, text)
