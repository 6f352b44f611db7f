"""Packages of the driver, who may change them behind our back, and whether apt can be used at all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.provision_apt import JOURNAL, installed, lock_holder
from ansible.module_utils.provision_host import run

from provision.drift.host.packages import who

DRIVER = re.compile(r"(?:lib)?nvidia-.*|libcuda1|libcudadebugger1|cuda-drivers.*|firmware-nvidia-.*")
VERSION = re.compile(r"(?:\d+:)?(\d{3}\.\d+(?:\.\d+)?)-")
TIMER = "apt-daily-upgrade.timer"


def look(_asked: Mapping[str, Any]) -> dict[str, Any]:
    """What dpkg and apt say; nothing is fetched."""
    present = installed()
    driver = {name: VERSION.match(package.version) for name, package in present.items() if DRIVER.fullmatch(name)}
    settings = apt_settings(run(["apt-config", "dump"], check=False, timeout_s=20).out)
    patterns = settings.get("Unattended-Upgrade::Package-Blacklist", [])
    theirs = [name for name in driver if not is_listed(name, patterns)]
    return {
        "driver": {
            name: {"version": found.group(1), "held": present[name].held} for name, found in driver.items() if found
        },
        "last_change": who(list(driver), 0) or "",
        "broken": sorted(name for name, package in present.items() if not package.whole),
        "interrupted": any(Path(JOURNAL).glob("[0-9]*")),
        "lock_holder": lock_holder(),
        "unattended": "unattended-upgrades" in present and is_on(settings) and timer_runs(),
        "not_excluded": sorted(name for name in theirs if not present[name].held),
    }


def apt_settings(dump: str) -> dict[str, list[str]]:
    """The settings of `apt-config dump`, each with all its values."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r'^(\S+?)(?:::)? "(.*)";$', dump, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def is_on(settings: Mapping[str, list[str]]) -> bool:
    """Whether apt upgrades by itself: "1", or every so many days."""
    return settings.get("APT::Periodic::Unattended-Upgrade", ["0"])[-1] not in ("0", "")


def is_listed(name: str, patterns: Iterable[str]) -> bool:
    """Whether unattended-upgrades leaves a package alone: its patterns match from the start of a name."""
    return any(pattern and re.match(pattern, name) for pattern in patterns)


def timer_runs() -> bool:
    """Whether the timer is active that upgrades."""
    return bool(run(["systemctl", "is-active", "--quiet", TIMER], check=False, timeout_s=10).rc == 0)
