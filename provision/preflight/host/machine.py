"""The machine by itself: which it is, its clock's service, whether it waits for a reboot, its kernel's headers."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.provision_host import read_text, run

TIME_SERVICES = ("systemd-timesyncd", "chrony", "chronyd", "ntpsec", "ntp", "ntpd", "openntpd")
TIMEX_BYTES, TIMEX_STATUS = 208, 40  # struct timex of x86_64, and where its status stands
UNSYNCHRONISED, ERROR = 0x40, 5  # STA_UNSYNC; TIME_ERROR


def look(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the machine says of itself."""
    there = Path(f"/lib/modules/{os.uname().release}/build").exists()
    return {
        "boot_id": (read_text("/proc/sys/kernel/random/boot_id") or "").strip(),
        "machine_id": (read_text("/etc/machine-id") or "").strip(),
        "time_service": time_service(),
        "synchronised": synchronised(),
        "reboot_required": reboot_required(),
        "cmdline": (read_text("/proc/cmdline") or "").strip(),
        "headers": there,
        "headers_offered": None if there or not asked["headers"] else headers_offered(),
    }


def time_service() -> str:
    """The service that keeps the clock, empty for none."""
    states = run(["systemctl", "is-active", *TIME_SERVICES], check=False, timeout_s=10).out.split()
    return next((name for name, state in zip(TIME_SERVICES, states) if state == "active"), "")  # noqa: B905  Python 3.9


def synchronised() -> bool | None:
    """Whether the kernel's clock follows another, by its own word (adjtimex); None if it may not say."""
    buffer = ctypes.create_string_buffer(TIMEX_BYTES)
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    if state < 0:
        return None
    status = ctypes.c_int.from_buffer(buffer, TIMEX_STATUS).value
    return state != ERROR and not status & UNSYNCHRONISED


def reboot_required() -> list[str]:
    """The packages that ask for a reboot, "a package" where none says which."""
    if not Path("/run/reboot-required").exists():
        return []
    names = (read_text("/run/reboot-required.pkgs") or "").split()
    return sorted(set(names)) or ["a package"]


def headers_offered() -> bool | None:
    """Whether apt's lists have the headers of the running kernel; None where there are no lists to ask."""
    if not any(Path("/var/lib/apt/lists").glob("*_Packages*")):
        return None
    quietly = ["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]  # it would write its cache
    said = run(["apt-cache", *quietly, "show", f"linux-headers-{os.uname().release}"], check=False, timeout_s=30)
    return bool(said.rc == 0 and said.out.strip())
