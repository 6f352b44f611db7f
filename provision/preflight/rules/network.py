"""Rules of the ways between hosts: addresses, RDMA ports, GPUDirect, PCIe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from provision.preflight.facts import Interface, RdmaPort
from provision.preflight.findings import Finding, blocker, note, ok, warning
from provision.preflight.rules.seen import TIMES, Seen, several

LAYERS = {"ib": "InfiniBand", "roce": "Ethernet"}


def peer_interface(seen: Seen) -> Interface | None:
    """The interface that has the address at which its peers find it."""
    address = seen.host.ray_address
    return next((each for each in seen.facts.net.interfaces if address in each.addresses), None)


def addresses(seen: Seen) -> Iterator[Finding]:
    """That the address and the interface for its peers are there."""
    if not (seen.uses_ray and seen.has_peers):
        return
    own, named = peer_interface(seen), str(seen.host.setting("ray_interface") or "")
    interfaces = {each.name: each for each in seen.facts.net.interfaces}
    shown = several([f"{each.name} {' '.join(each.addresses)}" for each in interfaces.values() if each.addresses], 6)
    if own is None:
        yield blocker(
            "network",
            f"ray_address {seen.host.ray_address} is on none of its interfaces ({shown}).",
            "Set ray_address to the address by which its peers reach it; behind NAT, one that it has itself.",
        )
    elif named and named not in interfaces:
        yield blocker("network", f"ray_interface {named} does not exist ({shown}).", "Correct ray_interface.")
    elif named and named != own.name:
        yield warning(
            "network",
            f"ray_interface is {named}, but ray_address {seen.host.ray_address} is on {own.name}.",
            "Let both name one network, or gloo and Ray take different ways.",
        )
    else:
        yield ok("network", f"{own.name} has {seen.host.ray_address}, MTU {own.mtu}")


def names(seen: Seen) -> Iterator[Finding]:
    """Whether it resolves names."""
    net = seen.facts.net
    unresolved = [each.url for each in seen.facts.reach if each.failure == "dns"]
    if unresolved:
        servers = ", ".join(net.name_servers) or "none"
        yield blocker(
            "dns",
            f"it does not resolve {several([url.split('/')[2] for url in unresolved])} (name servers: {servers}).",
            "Look there at: resolvectl status; /etc/resolv.conf. Where only a proxy resolves, set site_https_proxy.",
        )
    elif not net.resolves_itself:
        todo = f"Add it there:  echo '127.0.1.1 {net.name}' >> /etc/hosts. sudo and some daemons wait for it."
        yield warning("dns", f"it does not resolve its own name {net.name}.", todo)
    else:
        yield ok("dns", f"name servers {', '.join(net.name_servers) or 'none'}")


def ports(seen: Seen) -> Iterator[Finding]:
    """RDMA ports for computing against the profile's; names differ from chassis to chassis, so they are counted."""
    found = seen.facts.rdma.ports
    up = [port for port in found if port.is_up]
    matters = warning if seen.has_peers else _note
    down = [port for port in found if not port.is_up]
    for port in down:
        yield matters(
            "rdma",
            f"{port.device} is {port.state.lower()} ({port.physical}; {port.link_layer}, firmware {port.firmware}).",
            _link_advice(port),
        )
    missing = list(_missing(seen, found))
    for what in missing:
        yield matters(
            "rdma", what, "Compare there: ibstat; lspci -d 15b3:. Look for a port in the other mode, or a card."
        )
    slow = list(_slow(seen, up))
    for what in slow:
        yield matters(
            "rdma", what, "A worn cable or transceiver, or a switch port set slower: mlxlink -d DEVICE, ibstatus."
        )
    if not found and seen.has_peers and not missing:
        yield note(
            "rdma", "it has no RDMA ports: NCCL goes over TCP.", "Right for small models; else see hardware_profile."
        )
    elif found and not down and not missing and not slow:
        rates = Counter(f"{port.link_layer} {port.rate:.0f} Gb/s" for port in up)
        yield ok("rdma", ", ".join(f"{count} {TIMES} {rate}" for rate, count in rates.items()))


def _note(check: str, message: str, todo: str) -> Finding:
    return note(check, message, f"{todo} (A replica of one host does not use it.)")


def _link_advice(port: RdmaPort) -> str:
    if port.state == "INIT":
        return "The link is up, but no subnet manager has configured it: exactly one opensm must run in the fabric."
    advice = "Cable, transceiver, or switch port."
    return f"{advice} Look there at: ibstat {port.device}; NCCL spreads over what is left, and is slower by its share."


def _for_computing(seen: Seen) -> list[Mapping[str, Any]]:
    """The ports of the profile that NCCL is to use."""
    return [port for port in seen.profile.get("rdma", ()) if port.get("use") == "compute"]


def _missing(seen: Seen, found: tuple[RdmaPort, ...]) -> Iterator[str]:
    wanted = Counter(LAYERS[port["type"]] for port in _for_computing(seen))
    there = Counter(port.link_layer for port in found)
    for layer, count in wanted.items():
        if there[layer] < count:
            yield f"it has {there[layer]} ports of {layer}; hardware_profile has {count} for computing."


def _slow(seen: Seen, up: list[RdmaPort]) -> Iterator[str]:
    rates = {
        LAYERS[port["type"]]: float(port["rate"])
        for port in seen.profile.get("rdma", ())
        if port.get("use") == "compute"
    }
    for port in up:
        if port.rate < rates.get(port.link_layer, 0):
            yield f"{port.device} runs at {port.rate:.0f} Gb/s; hardware_profile has {rates[port.link_layer]:.0f}."


def gpudirect(seen: Seen) -> Iterator[Finding]:
    """Whether an adapter can read a GPU's memory by itself: by DMA-BUF, or by nvidia_peermem."""
    rdma, nvidia = seen.facts.rdma, seen.facts.nvidia
    if not rdma.ports or not nvidia.loaded:
        return
    by_buffer = nvidia.is_open and rdma.dma_buf_kernel
    if by_buffer or rdma.peermem:
        ways = [*(["DMA-BUF"] if by_buffer else []), *(["nvidia_peermem"] if rdma.peermem else [])]
        yield ok("gpudirect", f"possible by {' and '.join(ways)}")
        return
    why = "the driver's kernel module is the proprietary one" if not nvidia.is_open else "the kernel is older than 5.12"
    matters = warning if seen.has_peers else _note
    yield matters(
        "gpudirect",
        f"GPUDirect RDMA is off: {why}, so there is no DMA-BUF, and nvidia_peermem is not loaded. NCCL copies through "
        "the CPU's memory, at a tenth of the speed between hosts, and says so only with NCCL_DEBUG=INFO.",
        "Have the open modules (driver_kernel_modules: open); or load the other: modprobe nvidia_peermem, and "
        "echo nvidia_peermem > /etc/modules-load.d/nvidia-peermem.conf",
    )


def pcie(seen: Seen) -> Iterator[Finding]:
    """Whether something makes devices talk through the processor instead of with each other."""
    pci = seen.facts.pci
    if pci.acs_redirect:
        yield warning(
            "pcie",
            f"ACS redirects traffic between devices in {len(pci.acs_redirect)} ports of PCIe switches "
            f"({several(list(pci.acs_redirect))}): GPUs and adapters talk through the root complex.",
            "On bare metal turn it off in the firmware, or at each boot: setpci -s PORT ECAP_ACS+6.w=0000",
        )
    translating = [kind for kind in pci.iommu if kind.startswith("DMA")]
    if translating:
        yield warning(
            "pcie",
            f"the IOMMU translates what GPUs send (groups of type {', '.join(translating)}): traffic between devices "
            "goes through the root complex.",
            "Add iommu=pt to the kernel's command line (GRUB_CMDLINE_LINUX, update-grub) and reboot; or turn it off.",
        )
    if not pci.acs_redirect and not translating:
        yield ok("pcie", "no ACS redirection; IOMMU " + (" and ".join(pci.iommu) or "off"))
