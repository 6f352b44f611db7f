"""The RDMA ports of a host: what each shows, which of them carry the traffic of the GPUs, and why.

Shared by the modules of the role rdma. Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, NamedTuple, Sequence

from ansible.module_utils import provision_pci as pci
from ansible.module_utils.provision_host import HostError, read_text, run

INFINIBAND, ETHERNET = "InfiniBand", "Ethernet"


class Gid(NamedTuple):
    """One entry of a port's table of addresses."""

    index: int
    kind: str
    address: ipaddress.IPv6Address
    interface: str


@dataclass(frozen=True)
class Port:
    """One port of an RDMA device, as sysfs shows it."""

    device: str
    number: int
    pci: str
    link_layer: str
    state: str
    physical: str
    rate: str
    interfaces: tuple[str, ...] = ()
    gids: tuple[Gid, ...] = ()

    @property
    def name(self) -> str:
        """As NCCL and UCX write it."""
        return f"{self.device}:{self.number}"

    @property
    def is_up(self) -> bool:
        return self.state == "ACTIVE"


@dataclass(frozen=True)
class Choice:
    """A port, whether the GPUs' traffic takes it, and why (or why not)."""

    port: Port
    used: bool
    why: str


def _said(path: Path) -> str:
    """A file's text; of `4: ACTIVE`, the word. A slot that is not in use answers with an error."""
    try:
        return re.sub(r"^\d+: ", "", (read_text(str(path)) or "").strip())
    except OSError:
        return ""


def _entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []


def _gids(port: Path) -> Iterator[Gid]:
    for name in sorted(_entries(port / "gids"), key=int):
        text = _said(port / "gids" / name)
        kind = _said(port / "gid_attrs/types" / name)
        if kind and text.strip("0:"):
            yield Gid(int(name), kind, ipaddress.IPv6Address(text), _said(port / "gid_attrs/ndevs" / name))


def _address(device: Path) -> str:
    """Where an adapter sits on the bus; empty for Soft-RoCE, which the kernel makes in software: it has no place."""
    link = device / "device"
    return os.path.basename(os.readlink(link)) if link.is_symlink() else ""


def ports() -> list[Port]:
    """Every RDMA port of the host, in the order of the devices' names."""
    found = []
    root = pci.SYS / "class/infiniband"
    for device in sorted(_entries(root), key=natural):
        for number in sorted(_entries(root / device / "ports"), key=int):
            folder = root / device / "ports" / number
            layer = _said(folder / "link_layer")
            # InfiniBand is addressed by the fabric's own numbers.
            gids = tuple(_gids(folder)) if layer == ETHERNET else ()
            named = {gid.interface for gid in gids if gid.interface}
            found.append(
                Port(
                    device,
                    int(number),
                    _address(root / device),
                    layer,
                    _said(folder / "state"),
                    _said(folder / "phys_state"),
                    _said(folder / "rate"),
                    tuple(sorted(named | set(_entries(root / device / "device/net")))),
                    gids,
                )
            )
    return found


def natural(name: str) -> list[Any]:
    """mlx5_10 comes after mlx5_9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def lowers(interface: str) -> set[str]:
    """An interface with all that it is made of: a VLAN's or bond's parts, down to the cards."""
    found, waiting = set(), [interface]
    while waiting:
        name = waiting.pop()
        if name and name not in found:
            found.add(name)
            waiting += [e[len("lower_") :] for e in _entries(pci.SYS / "class/net" / name) if e.startswith("lower_")]
    return found


def choose(found: Sequence[Port], wanted: dict[str, Any], interface: str) -> list[Choice]:
    """Which ports carry the traffic of the GPUs, with the reason for each.

    The state of a link does not count: a cable that is pulled changes nothing here, and NCCL passes over a port that is
    down by itself.
    """
    _refuse_unknown(found, wanted)
    why_not = _left_out(found, wanted, interface)
    rest = [port for port in found if port.name not in why_not]
    near = {} if wanted["devices"] else _nearest(pci.gpus(), rest)
    choices = []
    for port in found:
        close = near.get(port.name, [])
        if port.name in why_not:
            choices.append(Choice(port, False, why_not[port.name]))
        elif near and not close:
            choices.append(Choice(port, False, "every GPU has a nearer one"))
        elif close:
            choices.append(Choice(port, True, f"nearest to GPU{'s' * (len(close) > 1)} {', '.join(close)}"))
        else:
            choices.append(
                Choice(port, True, "rdma_devices names it" if wanted["devices"] else "nothing speaks against it")
            )
    return choices


def _names(port: Port) -> set[str]:
    """What the inventory may call a port: by its device, or with its number."""
    return {port.device, port.name}


def _refuse_unknown(found: Sequence[Port], wanted: dict[str, Any]) -> None:
    known = sorted({name for port in found for name in _names(port)}, key=natural)
    for variable in ("devices", "exclude"):
        for name in wanted[variable]:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                told = f"Did you mean {near[0]}?" if near else f"It has {', '.join(known) or 'none'}."
                raise HostError(
                    f"rdma_{variable} names {name}, which is no RDMA device of this host. {told} Nothing was changed; "
                    "correct the inventory and run again."
                )


def _left_out(found: Sequence[Port], wanted: dict[str, Any], interface: str) -> dict[str, str]:
    """Why ports are not for the GPUs, by name, before anybody asks where they sit."""
    why = {port.name: "rdma_exclude names it" for port in found if _names(port) & set(wanted["exclude"])}
    if wanted["devices"]:
        named = {port.name for port in found if _names(port) & set(wanted["devices"])}
        return {**{port.name: "rdma_devices names others" for port in found if port.name not in named}, **why}
    if any(port.pci for port in found):
        made = [port.name for port in found if not port.pci and port.name not in why]
        why.update(dict.fromkeys(made, "the kernel makes it in software, and this host has adapters"))
    rest = [port for port in found if port.name not in why]
    if any(port.link_layer == INFINIBAND for port in rest):
        roce = [port for port in rest if port.link_layer != INFINIBAND]
        why.update({port.name: "it is RoCE, and the GPUs have InfiniBand" for port in roce})
        return why
    beneath = lowers(interface)
    control = [port for port in rest if beneath & set(port.interfaces)]
    if control and len(control) < len(rest):
        why.update({port.name: f"it carries {interface}, the network of control and clients" for port in control})
    return why


def _nearest(cards: Sequence[str], rest: Sequence[Port]) -> dict[str, list[str]]:
    """By port the GPUs, by index, that have no nearer one.

    Where ports share PCIe switches with GPUs, only those count: what sits elsewhere serves storage or management.
    """
    table = distances(cards, rest)
    if not rest or not table:
        return {}
    limit = pci.DISTANCES.index(pci.PXB)
    is_switched = any(min(row.values()) <= limit for row in table)
    near: dict[str, list[str]] = {}
    for index, row in enumerate(table):
        best = min(row.values())
        for name in (name for name, far in row.items() if far == best and (best <= limit or not is_switched)):
            near.setdefault(name, []).append(str(index))
    return near


def distances(cards: Sequence[str], rest: Sequence[Port]) -> list[dict[str, int]]:
    """For each GPU, how far each port is from it: an index into `pci.DISTANCES`."""
    places = {port.name: pci.place(port.pci) for port in rest}
    wheres = [pci.place(card) for card in cards]
    return [
        {name: pci.DISTANCES.index(pci.distance(where, other)) for name, other in places.items()} for where in wheres
    ]


def gid_index(port: Port, network: str) -> int | None:
    """Where in a RoCE port's table its IPv4 address for RoCE v2 stands; None if it has none (in that network)."""
    for gid in port.gids:
        address = gid.address.ipv4_mapped
        if gid.kind == "RoCE v2" and address and (not network or address in ipaddress.ip_network(network)):
            return gid.index
    return None


def interfaces() -> dict[str, list[str]]:
    """The IP addresses of each interface."""
    links = json.loads(run(["ip", "-json", "address", "show"]).out or "[]")
    return {
        link["ifname"]: [info["local"] for info in link.get("addr_info", []) if "local" in info]
        for link in links
        if "ifname" in link
    }


def interface_of(address: str) -> str:
    """The interface that has an address (or the one that a name stands for)."""
    try:
        wanted = {str(entry[4][0]).partition("%")[0] for entry in socket.getaddrinfo(address, None)}
    except OSError as error:
        raise HostError(
            f"ray_address is {address}, which this host cannot resolve: {error}. Set an IP address."
        ) from None
    there = {name: addresses for name, addresses in interfaces().items() if name != "lo"}
    for name, addresses in there.items():
        if wanted & set(addresses):
            return name
    shown = "; ".join(f"{name} has {', '.join(addresses)}" for name, addresses in there.items() if addresses)
    raise HostError(
        f"No interface of this host has {address}, at which its peers look for it (ray_address): {shown}. Set "
        "ray_address to one of these; or ray_interface, where the address is the loopback's."
    )
