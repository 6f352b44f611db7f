"""Rebooting a simulated host from outside."""

from __future__ import annotations

import time
from collections.abc import Callable

from provision.errors import LabError
from provision.lab import login
from provision.lab.fleet import LabFleet
from provision.lab.host import LabHost

_STOP = 120  # seconds in which a host must stop its services


def reboot(fleet: LabFleet, host: LabHost, *, hard: bool, report: Callable[[str], None]) -> None:
    """Reboot a host and wait until it lets the fleet's user in; `hard` cuts the power instead of asking the host."""
    before = host.running_leader()
    if hard or before is None:
        report(f"Switching {host.name} off and on")
        host.power_off()
        host.power_on()
    else:
        report(f"Asking {host.name} to reboot")
        host.run(["systemctl", "--no-block", "reboot"])
        _await_another(host, before)
    login.await_answers(fleet.directory, [host], report)


def _await_another(host: LabHost, before: int) -> None:
    deadline = time.monotonic() + _STOP
    while host.running_leader() in {None, before}:
        if time.monotonic() > deadline or not host.on:
            raise LabError(
                f"{host.name} does not come back from its reboot.\n"
                f"  Cut its power: provision lab reboot --hard {host.name}"
            )
        time.sleep(0.1)
