"""Rules of the driver, the GPUs, and what joins them within a host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import combinations

from provision.preflight.facts import Gpu, Package
from provision.preflight.findings import Finding, blocker, note, ok, warning
from provision.preflight.rules.seen import TIMES, Seen, several

FABRIC_MANAGER = "nvidia-fabricmanager"
FOLLOWERS = (FABRIC_MANAGER, "libnvidia-nscq", "nvidia-driver-pinning")  # not the driver itself
JOINED = "Completed Success"
OURS = ("vllm.service", "ray-head.service", "ray-worker.service")
DAEMONS = ("nvidia-persiste", "nvidia-persistenced", "nv-fabricmanage", "nv-fabricmanager", "nv-hostengine")


def versions(packages: Mapping[str, Package]) -> dict[str, list[str]]:
    """The names of the driver's packages by their version."""
    found: dict[str, list[str]] = {}
    for name, package in packages.items():
        if not name.startswith(FOLLOWERS):
            found.setdefault(package.version, []).append(name)
    return found


def fabric_manager_version(packages: Mapping[str, Package]) -> str:
    """The version of the package, whatever suffix its name has; empty where it is not installed."""
    return next((package.version for name, package in packages.items() if name.startswith(FABRIC_MANAGER)), "")


def mismatch(seen: Seen) -> str:
    """The installed version where another is loaded, so that new programs find no GPU; else empty."""
    installed = sorted(versions(seen.facts.packages.driver))
    loaded = seen.facts.nvidia.loaded
    return next((version for version in installed if loaded and version != loaded), "")


def driver(seen: Seen) -> Iterator[Finding]:
    """What is loaded, what is installed, and what is wanted."""
    loaded, wanted = seen.facts.nvidia.loaded, str(seen.host.setting("driver_version") or "")
    installed = versions(seen.facts.packages.driver)
    if not seen.profile and not loaded:
        return
    if other := mismatch(seen):
        yield warning(
            "driver",
            f"driver {other} is installed ({several(installed[other], 2)}), but the kernel runs module {loaded}: what "
            "starts now finds no GPU (nvidia-smi: Driver/library version mismatch).",
            f"{_who(seen)}Repair: {seen.bootstrap}",
        )
    if loaded and (told := _other_wanted(seen, wanted)):
        yield _another_wanted(seen, told)
    elif not loaded:
        yield _nothing_loaded(seen, installed, wanted)
    elif not other:
        yield ok("driver", f"{loaded} is loaded ({_flavour(seen)} kernel modules)")


def _who(seen: Seen) -> str:
    """Who changed the driver's packages, as far as the host's logs know."""
    known = seen.facts.packages.last_change
    return f"{known[0].upper()}{known[1:]}. " if known else ""


def _other_wanted(seen: Seen, wanted: str) -> str:
    """In which way another kernel module is loaded than the inventory wants."""
    loaded, flavour = seen.facts.nvidia.loaded, _flavour(seen)
    modules = str(seen.host.setting("driver_kernel_modules") or flavour)
    if wanted and loaded != wanted:
        return f"driver {loaded} is loaded, {wanted} is wanted."
    if flavour != modules:
        return f"driver {loaded} runs with {flavour} kernel modules, {modules} ones are wanted."
    return ""


def _flavour(seen: Seen) -> str:
    return "open" if seen.facts.nvidia.is_open else "proprietary"


def _another_wanted(seen: Seen, message: str) -> Finding:
    if seen.host.setting("reboot_allowed"):
        return note("driver", message, "A bootstrap installs it and reboots this host.")
    todo = f"When it may be rebooted: set reboot_allowed: true for it, then {seen.bootstrap}"
    return blocker("driver", f"{message} That takes a reboot, which is not allowed: a bootstrap stops there.", todo)


def _nothing_loaded(seen: Seen, installed: Mapping[str, list[str]], wanted: str) -> Finding:
    if not installed:
        nouveau = " nouveau is loaded: where it holds the GPUs, that takes a reboot." if seen.facts.base.nouveau else ""
        return note("driver", f"no driver is installed.{nouveau}", f"A bootstrap installs {wanted}.")
    return warning(
        "driver",
        f"driver {', '.join(sorted(installed))} is installed, but its module is not loaded.",
        "Look there at: dkms status; journalctl -k -g 'nvidia|NVRM'. A bootstrap tries to load it.",
    )


def fabric(seen: Seen) -> Iterator[Finding]:
    """Whether the NVSwitches' Fabric Manager is of the driver's version, runs, and has joined every GPU."""
    nvidia = seen.facts.nvidia
    if not seen.profile or not seen.profile["nvswitches"]["count"] or not nvidia.loaded:
        return
    version = fabric_manager_version(seen.facts.packages.driver)
    apart = [f"GPU {gpu.index} {gpu.fabric}" for gpu in nvidia.gpus if gpu.fabric != JOINED]
    dead = "CUDA fails with error 802 (system not yet initialized), though nvidia-smi looks fine"
    logs = "Look there at: systemctl status nvidia-fabricmanager; tail /var/log/fabricmanager.log."
    if version and version == mismatch(seen):
        return  # upgraded with the driver, which has its own finding
    if version and version != nvidia.loaded:
        what = f"Fabric Manager {version} is installed with driver {nvidia.loaded}; they must be the same, or {dead}."
        yield warning("fabric", what, f"Repair: {seen.bootstrap}")
    elif version and nvidia.fabric_manager != "active":
        what = f"nvidia-fabricmanager.service is {nvidia.fabric_manager or 'not there'}: {dead}."
        yield warning("fabric", what, f"{logs} Repair: {seen.bootstrap}")
    elif nvidia.gpus and not apart:
        yield ok("fabric", f"joined by Fabric Manager {version}" if version else "joined, from outside this host")
    elif not version:
        yield warning("fabric", f"Fabric Manager is not installed: {dead}.", f"Repair: {seen.bootstrap}")
    elif apart:
        yield warning("fabric", f"the fabric is not complete ({several(apart)}): {dead}.", logs)


def gpus(seen: Seen) -> Iterator[Finding]:
    """What the driver shows of the cards: that it answers, all of them, their memory, their errors."""
    nvidia = seen.facts.nvidia
    if not nvidia.loaded:
        return
    if nvidia.error:
        if not mismatch(seen):  # which is the reason, and told
            what, _, todo = nvidia.error.partition(". ")
            yield blocker("gpus", f"{what}.", todo or "Look there at: journalctl -k -g 'NVRM|Xid'")
        return
    found = [*_count(seen), *(finding for gpu in nvidia.gpus for finding in _card(gpu))]
    yield from found
    if not found:
        names = Counter(gpu.name for gpu in nvidia.gpus)
        shown = ", ".join(f"{count} {TIMES} {name}" for name, count in names.items())
        yield ok("gpus", shown or "none")


def _count(seen: Seen) -> Iterator[Finding]:
    cards, wanted = seen.facts.nvidia.gpus, seen.profile.get("gpus")
    if wanted and len(cards) < wanted["count"]:
        yield blocker(
            "gpus",
            f"nvidia-smi shows {len(cards)} of {wanted['count']} GPUs.",
            "Compare there: lspci -d 10de:; journalctl -k -g 'NVRM|Xid'. A power cycle may bring it back.",
        )
    odd = [gpu for gpu in cards if wanted and gpu.memory_mib != wanted["memory_mib"]]
    if wanted and odd:
        seen_sizes = ", ".join(sorted({f"{gpu.memory_mib} MiB" for gpu in odd}))
        yield warning(
            "gpus",
            f"{_named(odd)} have {seen_sizes} of memory; {wanted['name']} has {wanted['memory_mib']} MiB.",
            "Another card, or ECC or MIG takes a part: nvidia-smi -q -d MEMORY,ECC. Is hardware_profile right?",
        )


def _card(gpu: Gpu) -> Iterator[Finding]:
    if gpu.remap_failed:
        todo = "Have it replaced: its memory cannot be repaired by itself any more."
        yield blocker("gpus", f"GPU {gpu.index}: remapping of a faulty memory row failed.", todo)
    elif gpu.uncorrected or gpu.remap_pending:
        waits = " A row waits to be remapped." if gpu.remap_pending else ""
        yield warning(
            "gpus",
            f"GPU {gpu.index}: {gpu.uncorrected} uncorrectable memory errors since the driver was loaded.{waits}",
            "Reset the GPU or reboot when nothing runs there; if errors come back, have the card replaced.",
        )
    if gpu.mig:
        yield note("gpus", f"GPU {gpu.index} is split into instances (MIG).", "A bootstrap turns MIG off (gpu_mig).")
    if not gpu.ecc:
        yield note("gpus", f"GPU {gpu.index}: ECC is off.", "A bootstrap turns it on at the next reset (gpu_ecc).")


def _named(cards: list[Gpu]) -> str:
    return f"GPU {', '.join(str(gpu.index) for gpu in cards)}"


def nvlink(seen: Seen) -> Iterator[Finding]:
    """Whether every NVLink of every GPU is up."""
    wanted = int(seen.profile["gpus"].get("nvlinks", 0)) if seen.profile else 0
    links = seen.facts.nvidia.links
    expected = max([wanted, *(each.up + each.down for each in links)])
    short = [f"GPU {index} has {each.up} of {expected}" for index, each in enumerate(links) if each.up < expected]
    if not links:
        return
    if not any(each.up for each in links) and any(finding.severity != "ok" for finding in fabric(seen)):
        return  # they come up with the fabric, which has its own finding
    if short:
        yield warning(
            "nvlink",
            f"NVLinks are down: {several(short)}.",
            "NCCL slows to the worst. Look there at: nvidia-smi nvlink -s; nvidia-smi nvlink -e. Power-cycle.",
        )
    else:
        yield ok("nvlink", f"{expected} of {expected} up on each GPU")


def topology(seen: Seen) -> Iterator[Finding]:
    """Whether GPUs reach each other by NVLink, and sit at both processors as the profile's do."""
    rows = seen.facts.nvidia.topology
    names = [name for name in rows if name.startswith("GPU")]
    pairs = {f"{one}-{other}": rows[one].get(other, "") for one, other in combinations(names, 2)}
    plain = [f"{pair} {how}" for pair, how in pairs.items() if not how.startswith("NV")]
    if pairs and plain and seen.profile and seen.profile["gpus"].get("nvlinks"):
        yield warning(
            "topology",
            f"GPUs are joined by PCIe where NVLink should be: {several(plain)}.",
            "Look there at: nvidia-smi topo -m. NCCL's traffic is then a tenth as fast.",
        )
    elif pairs:
        yield ok("topology", f"GPUs are joined by {', '.join(sorted(set(pairs.values())))}")
    yield from _nodes(seen)


def _nodes(seen: Seen) -> Iterator[Finding]:
    cards = [device for device in seen.facts.base.nvidia if device.kind.startswith(("0x0302", "0x0300"))]
    found = sorted(Counter(device.numa for device in cards).values())
    wanted = sorted(Counter(seen.profile["gpus"]["numa"]).values()) if seen.profile else found
    if cards and len(cards) == sum(wanted) and found != wanted:
        yield note(
            "topology",
            f"its GPUs are spread over NUMA nodes as {'+'.join(map(str, found))}, not as {'+'.join(map(str, wanted))}.",
            "The firmware may hide NUMA (NPS, sub-NUMA clustering, node interleaving); a virtual machine always may.",
        )


def processes(seen: Seen) -> Iterator[Finding]:
    """Who uses the GPUs besides what this project runs."""
    others = [each for each in seen.facts.nvidia.processes if each.unit not in OURS and each.program not in DAEMONS]
    for each in others:
        cards = f"GPU {', '.join(map(str, each.gpus))}" if each.gpus else "a GPU"
        of = ", ".join(filter(None, [f"user {each.user}" if each.user else "", each.unit]))
        yield warning(
            "processes",
            f"process {each.pid} ({each.program or 'of another container'}; {of or 'gone'}) uses {cards}"
            f"{f', {each.memory_mib} MiB' if each.memory_mib else ''}.",
            f"vLLM takes nearly all memory of every GPU: end it there, or its service (systemctl status {each.pid}).",
        )
    if not others and seen.facts.nvidia.loaded:
        yield ok("processes", "nobody else uses the GPUs")
