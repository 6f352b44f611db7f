"""Rules of the machine: system, clock, disks, memory, reboots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from provision.content import of_roles
from provision.preflight.findings import Finding, blocker, note, ok, warning
from provision.preflight.request import fitness_wanted, wanted_swap
from provision.preflight.rules.seen import Seen, several, size_text

SLOW = {
    "rotational": "a rotating disk, which reads some 0.2 GB/s: 689 GB of weights take an hour at each start",
    "network": "a network file system, which every start reads the model through",
    "memory": "memory, which is empty after each boot",
}


def fit(seen: Seen) -> Iterator[Finding]:
    """What the stage preflight would object to, in its own words."""
    base = seen.facts.base
    facts = {
        "system": base.system,
        "free": base.free,
        "memory": base.memory,
        "nvidia": [{"kind": device.kind, "device": device.device} for device in base.nvidia],
        "secure_boot": base.secure_boot,
        "driver_loaded": base.driver_loaded,
        "bootstrapped": base.bootstrapped,
    }
    objections = list(of_roles("provision_fitness").objections(facts, fitness_wanted(seen.host)))
    for one in objections:
        yield _blocker(one)
    if not any(one.about == "system" for one in objections):
        yield ok("system", f"{base.system['name']}, kernel {base.system['kernel']}, Python {base.system['python']}")
    if seen.profile and not any(one.about == "hardware" for one in objections):
        yield ok("hardware", f"the PCI bus shows what {seen.host.setting('hardware_profile')} has")
    if not any(one.about == "memory" for one in objections):
        yield ok("memory", size_text(base.memory))


def _blocker(one: Any) -> Finding:  # noqa: ANN401 - an Objection of the roles' own module
    """An objection of the stage, beside others of a host."""
    what = one.what[0].lower() + one.what[1:] if one.what.startswith("It") else one.what
    return blocker(one.about, what, one.remedy)


def clock(seen: Seen) -> Iterator[Finding]:
    """Its clock against the controller's, as far as that is certain."""
    allowed = float(str(seen.host.setting("preflight_max_clock_skew") or 0))
    behind, ahead = seen.ahead
    surely = behind if behind > 0 else ahead if ahead < 0 else 0.0
    objections = list(of_roles("provision_fitness").of_clock(surely, allowed))
    for one in objections:
        yield _blocker(one)
    if not objections:
        yield ok("clock", "agrees with the controller's" if surely == 0 else f"{surely:+.1f} s from the controller's")


def time_sync(seen: Seen) -> Iterator[Finding]:
    """Whether somebody keeps its clock."""
    machine = seen.facts.machine
    if seen.is_simulated:
        yield ok("time", "a simulated host has the clock of its machine")
    elif machine.synchronised is False and machine.time_service:
        yield warning(
            "time",
            f"{machine.time_service} runs, but the clock is not synchronised.",
            "It may have no server to ask. Look there at: timedatectl timesync-status; chronyc sources",
        )
    elif not machine.time_service and not machine.synchronised:
        yield warning(
            "time",
            "nobody keeps its clock: no time service runs.",
            "A bootstrap installs chrony (stage host)."
            if seen.host.setting("host_time_sync")
            else "Install and start one there: apt-get install chrony",
        )
    else:
        yield ok("time", f"synchronised{f' by {machine.time_service}' if machine.time_service else ''}")


def reboot(seen: Seen) -> Iterator[Finding]:
    """Whether it waits for a reboot that somebody asked for."""
    waiting = list(seen.facts.machine.reboot_required)
    if waiting:
        yield warning(
            "reboot",
            f"it waits for a reboot, which {several(waiting)} asked for.",
            "Reboot it, drained if it serves, before a driver is built for the kernel that still runs.",
        )
    else:
        yield ok("reboot", "none is asked for")


def headers(seen: Seen) -> Iterator[Finding]:
    """What the driver's kernel module is built with."""
    machine, kernel = seen.facts.machine, seen.facts.base.system.get("kernel", "")
    if not seen.host.setting("driver_kernel_headers"):
        return
    if machine.headers:
        yield ok("headers", f"those of kernel {kernel} are there")
    elif machine.headers_offered is False:
        yield blocker(
            "headers",
            f"apt does not offer linux-headers-{kernel}: the driver's module cannot be built for the running kernel.",
            "Run apt-get update there; if that does not help, upgrade the kernel (linux-image and linux-headers of one "
            "version) and reboot.",
        )
    else:
        yield note("headers", f"linux-headers-{kernel} is not installed.", "The stage driver installs it.")


def swap(seen: Seen) -> Iterator[Finding]:
    """Whether the place for the swap file can hold one."""
    size, place = wanted_swap(seen.host), seen.facts.disks.get("swap")
    if not size or place is None:
        return
    if place.file_system not in of_roles("provision_fitness").HOLD_SWAP and not seen.is_simulated:
        yield blocker(
            "swap",
            f"{place.path} lies on {place.file_system} ({place.mount}), which cannot hold a swap file.",
            "Set swap_path to a local ext4, xfs or btrfs file system.",
        )
    elif place.free + place.taken < size:
        yield blocker(
            "swap",
            f"a swap file of {size_text(size)} does not fit at {place.path}: {size_text(place.free)} are free.",
            "Set a smaller swap_size, or swap_path on another disk.",
        )
    else:
        yield ok("swap", f"{size_text(size)} at {place.path} fit ({place.file_system})")


def disks(seen: Seen) -> Iterator[Finding]:
    """How fast the disk is that the model is read from."""
    place = seen.facts.disks.get("weights")
    if place is None:
        return
    names = f" ({', '.join(place.disks)})" if place.disks else ""
    if place.kind in SLOW:
        yield warning(
            "disk",
            f"weights_dir {place.path} lies on {SLOW[place.kind]}{names}.",
            "Mount a local NVMe disk there, or set weights_dir to one.",
        )
    else:
        what = f"{place.kind}{names}, {place.file_system} at {place.mount}"
        yield ok("disk", f"weights_dir: {what}, {size_text(place.free)} of {size_text(place.size)} free")


def busy(seen: Seen) -> Iterator[Finding]:
    """Whether another run is at work there."""
    if at := seen.facts.busy.pid:
        yield note(
            "busy",
            f"process {at} has been changing it since {seen.facts.busy.since}: {seen.facts.busy.command}",
            "A bootstrap would wait for it.",
        )
