#!/usr/bin/python
"""Ansible module: one daemon that keeps the clock: the one that the host has, or chrony."""

from __future__ import annotations

import os
import time
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_apt import install, installed
from ansible.module_utils.provision_host import Change, HostError, converge, file_change, run
from ansible.module_utils.provision_transient import after
from ansible.module_utils.provision_units import act_or_explain

DOCUMENTATION = r"""
module: time_sync
short_description: Has one daemon keep the host's clock
description:
  - Keeps the time daemon that is installed; of several the first in the order chrony, ntpsec, ntp, openntpd,
    systemd-timesyncd. Where there is none, installs chrony.
  - Hands RV(units) to M(systemd_units), which runs the one and stops the others, since two daemons pull a clock apart.
  - Warns where the daemon has run for five minutes and the clock is still not synchronised.
options:
  servers:
    description:
      - Time servers, by name or address, for chrony and systemd-timesyncd. Without any the daemon keeps those of its
        distribution.
    type: list
    elements: str
    default: []
  lock_timeout:
    description: Seconds to wait for another process that holds apt's lock.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Keep the clock
  time_sync:
    servers: [ntp1.example.com, ntp2.example.com]
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: ["Installed chrony, since nothing kept the clock."]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each package and file that differs.
  returned: always
  type: list
  elements: dict
daemon:
  description: The package of the daemon that keeps the clock.
  returned: always
  type: str
  sample: chrony
units:
  description: For M(systemd_units), the daemon's unit, and those of others that must not run.
  returned: always
  type: list
  elements: dict
  sample: [{name: chrony.service}]
"""

UNIT = "provision-packages"
# Package: its unit. The best at keeping a clock first; timesyncd only follows one server.
DAEMONS = {
    "chrony": "chrony.service",
    "ntpsec": "ntpsec.service",
    "ntp": "ntp.service",
    "openntpd": "openntpd.service",
    "systemd-timesyncd": "systemd-timesyncd.service",
}
HEADER = "# Written by provision (role host).\n"
CHRONY_SOURCES = "/etc/chrony/sources.d/90-provision.sources"
TIMESYNCD_CONF = "/etc/systemd/timesyncd.conf.d/90-provision.conf"
TIMESYNCD_MARK = "/run/systemd/timesync/synchronized"  # made by it once it has set the clock
PATIENCE_S = 300
UNIT_FOLDERS = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")


def present() -> list[str]:
    """The time daemons that are installed, the one to keep first; `ntp` may be an empty package for ntpsec."""
    packages = installed()
    whole = [name for name in DAEMONS if name in packages and packages[name].whole]
    return [name for name in whole if any(os.path.exists(f"{folder}/{DAEMONS[name]}") for folder in UNIT_FOLDERS)]


def text_for(path: str, lines: str, is_wanted: bool) -> str | None:
    """What a file that names servers shall say; where none are wanted any more, nothing, and None if it never was."""
    if is_wanted:
        return HEADER + lines
    return HEADER if os.path.exists(path) else None


def files(daemon: str, servers: list[str]) -> dict[str, str | None]:
    """The files that name the servers, with their texts."""
    chrony = "".join(f"server {name} iburst\n" for name in servers)
    timesyncd = f"[Time]\nNTP={' '.join(servers)}\n"
    return {
        CHRONY_SOURCES: text_for(CHRONY_SOURCES, chrony, bool(servers) and daemon == "chrony"),
        TIMESYNCD_CONF: text_for(TIMESYNCD_CONF, timesyncd, bool(servers) and daemon == "systemd-timesyncd"),
    }


def started(unit: str) -> float | None:
    """When a unit became active, in seconds since 1970; None where it is not."""
    asked = ["systemctl", "show", unit, "--property=ActiveState,ActiveEnterTimestampMonotonic"]
    said = dict(line.split("=", 1) for line in run(asked, check=False).out.splitlines() if "=" in line)
    if said.get("ActiveState") != "active":
        return None
    return time.time() - time.monotonic() + int(said["ActiveEnterTimestampMonotonic"]) / 1e6


def is_newer(path: str, at: float) -> bool:
    """Whether a file was changed after a unit was started."""
    return os.path.exists(path) and os.stat(path).st_ctime > at


def plan(servers: list[str], lock_timeout_s: int) -> Iterator[Change]:
    """A daemon, its servers, and a restart where it runs with others."""
    daemons = present()
    if not daemons:
        yield Change(
            "Installed chrony, since nothing kept the clock.",
            lambda: install({"chrony": ""}, lock_timeout_s, UNIT, alone=True),
            "packages",
            "chrony: absent\n",
            "chrony: installed\n",
        )
    daemon = daemons[0] if daemons else "chrony"
    if servers and daemon not in ("chrony", "systemd-timesyncd"):
        raise HostError(
            f"{daemon} keeps the clock of this host, and host_ntp_servers is for chrony and systemd-timesyncd. Remove "
            f"{daemon} (the next run installs chrony), or set its servers by hand and host_ntp_servers: []."
        )
    since, is_stale = started(DAEMONS[daemon]), False
    for path, text in files(daemon, servers).items():
        changes = list(file_change(path, text)) if text is not None else []
        is_stale = is_stale or bool(changes) or (since is not None and is_newer(path, since))
        yield from changes
    if since is not None and is_stale:
        unit = DAEMONS[daemon]
        words = (unit, "started with other servers\n", "started with what is wanted\n")
        yield Change(f"Restarted {unit}; its servers changed.", lambda: act_or_explain("restart", unit), *words)


def complaint(daemon: str) -> str:
    """What is to be said of a clock that its daemon does not keep; empty for one that it does, or may yet."""
    since = started(DAEMONS[daemon])
    if since is None or time.time() - since < PATIENCE_S:
        return ""
    if daemon == "chrony":
        told = run(["chronyc", "-c", "tracking"], check=False)
        is_kept = told.rc != 0 or not told.out.strip().endswith("Not synchronised")
    else:
        is_kept = daemon != "systemd-timesyncd" or os.path.exists(TIMESYNCD_MARK)
    if is_kept:
        return ""
    return (
        f"{daemon} has run for {(time.time() - since) / 60:.0f} min and has not synchronised this host's clock: it "
        "does not reach its servers. Set host_ntp_servers to some that it does."
    )


def main() -> None:
    spec = {
        "servers": {"type": "list", "elements": "str", "default": []},
        "lock_timeout": {"type": "int", "default": 300},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    servers, lock_timeout_s = module.params["servers"], module.params["lock_timeout"]

    def facts() -> dict[str, Any]:
        daemons = present() or ["chrony"]
        if told := complaint(daemons[0]):
            module.warn(told)
        units = [{"name": DAEMONS[daemons[0]]}]
        units += [{"name": DAEMONS[name], "state": "stopped", "enabled": False} for name in daemons[1:]]
        return {"daemon": daemons[0], "units": units}

    converge(module, lambda: after(UNIT, module.check_mode, lambda: plan(servers, lock_timeout_s)), facts)


if __name__ == "__main__":
    main()
