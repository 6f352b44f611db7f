"""The simulated fleet leaves nothing behind, survives its own death half way, and breaks as it is told to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rehearsal import Site, wait_until


def machine() -> dict[str, set[str]]:
    """What a fleet could leave behind on this machine."""

    def lines(*argv: str) -> set[str]:
        return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines())

    cgroups = {
        str(path) for top in Path("/sys/fs/cgroup").iterdir() for path in top.glob("*/") if "provision" in path.name
    }
    return {
        "mounts": {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()},
        "links": {line.split(":")[1].strip() for line in lines("ip", "-o", "link")},
        "tables": lines("nft", "list", "tables"),
        "cgroups": cgroups,
        "forwarding": {Path("/proc/sys/net/ipv4/ip_forward").read_text()},
        "loops": {line.split()[0] for line in lines("losetup", "--list", "--noheadings")},
    }


def processes(site: Site) -> list[str]:
    """Command lines that name the site's directories."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if str(site.state) in words and "pytest" not in words:
            found.append(words)
    return found


def test_down_leaves_nothing(make_site: Callable[[str], Site]) -> None:
    site, before = make_site("gone"), machine()
    site.up()
    assert site.sh("node-1", "hostname").strip() == "node-1"
    site.down()
    assert machine() == before
    assert processes(site) == []


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0, 4.0])
def test_a_killed_up_is_cleaned(make_site: Callable[[str], Site], seconds: float) -> None:
    site, before = make_site("killed"), machine()
    env = os.environ | {"XDG_STATE_HOME": str(site.state)}
    up = subprocess.Popen([site.command, "lab", "up", site.directory], env=env, start_new_session=True)
    time.sleep(seconds)
    os.killpg(up.pid, signal.SIGKILL)
    up.wait()
    site.up()
    assert site.sh("node-2", "systemctl is-system-running --wait || true").strip() in ("running", "degraded")
    site.down()
    assert machine() == before
    assert processes(site) == []


def test_a_reboot_from_inside_is_a_reboot(spare: Site) -> None:
    def start() -> str:
        return spare.sh("node-1", "stat -c %Y /proc/1", check=False)

    before = start()
    spare.sh("node-1", "systemctl reboot", check=False)
    wait_until("another boot", lambda: start() not in ("", before), seconds=60)


def test_status(spare: Site) -> None:
    state = json.loads(spare.run("lab", "status", spare.directory, "--json").out)
    assert {host["name"] for host in state["hosts"]} == {"node-1", "node-2"}
