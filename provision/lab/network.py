"""A fleet's own network: a bridge, a /24 below 10.0.0.0/8, a way out to the world, and none to other fleets."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from provision.errors import LabError
from provision.lab import process, shared

_PREFIX = "pl-"  # of every fleet's bridge
_RULES = """\
table ip {table} {{}}
delete table ip {table}
table ip {table} {{
    chain out {{
        type nat hook postrouting priority srcnat;
        ip saddr {subnet} oifname != "{bridge}" masquerade
    }}
    chain in {{
        type filter hook forward priority filter;
        oifname "{bridge}" iifname != "{bridge}" ct state != {{ established, related }} drop
    }}
    chain machine {{
        type filter hook input priority filter;
        iifname "{bridge}" fib daddr type local ip daddr != {gateway} drop
    }}
}}
"""


@dataclass(frozen=True)
class Network:
    """The network of the fleet `fleet` (its id). The first address is the machine's own: gateway and services."""

    fleet: str
    subnet: IPv4Network

    @property
    def bridge(self) -> str:
        """The name of the fleet's switch."""
        return f"{_PREFIX}{self.fleet}"

    @property
    def table(self) -> str:
        """The name of the fleet's table of packet filter rules."""
        return f"provision_lab_{self.fleet}"

    @property
    def gateway(self) -> IPv4Address:
        """The machine's address in the fleet."""
        return self.subnet[1]

    def address(self, number: int) -> IPv4Address:
        """The address of the host with this number, counted from 0."""
        return self.subnet[11 + number]


MOST_HOSTS = 240


def ensure(fleet: str, subnet: IPv4Network | None) -> Network:
    """Bring the fleet's network up, on `subnet` if it has one already; what stands is left as it is."""
    with shared.lock():
        network = Network(fleet, subnet or _free_subnet(fleet))
        if not Path("/sys/class/net", network.bridge).exists():
            _refuse_overlap(network.subnet)
            hardware_address = f"02:{fleet[0:2]}:{fleet[2:4]}:{fleet[4:6]}:{fleet[6:8]}:01"
            # A fixed address: else the bridge takes the lowest of its ports, and changes it as hosts come and go.
            process.call(["ip", "link", "add", network.bridge, "address", hardware_address, "type", "bridge"])
        process.call(["ip", "link", "set", network.bridge, "mtu", str(mtu()), "up"])
        process.call(
            ["ip", "address", "replace", f"{network.gateway}/{network.subnet.prefixlen}", "dev", network.bridge]
        )
        rules = _RULES.format(
            table=network.table, subnet=network.subnet, bridge=network.bridge, gateway=network.gateway
        )
        process.call(["nft", "-f", "-"], stdin=rules)
        shared.raise_knobs()
    return network


def remove(fleet: str) -> None:
    """Take the fleet's network away; the kernel's knobs go back with the last fleet of the machine."""
    with shared.lock():
        network = Network(fleet, IPv4Network("10.0.0.0/24"))  # only the names matter here
        for link in cables(fleet):
            process.call(["ip", "link", "delete", link], check=False)
        if Path("/sys/class/net", network.bridge).exists():
            process.call(["ip", "link", "delete", network.bridge])
        if process.call(["nft", "list", "table", "ip", network.table], check=False).returncode == 0:
            process.call(["nft", "delete", "table", "ip", network.table])
        if not any(Path("/sys/class/net").glob(f"{_PREFIX}*")):
            shared.restore_knobs()


def cables(fleet: str) -> list[str]:
    """The machine's ends of the cables of the fleet's hosts, in use or left behind."""
    return sorted(link.name for link in Path("/sys/class/net").glob(f"vb-{fleet}-*"))


def mtu() -> int:
    """The largest packet, in bytes, that leaves this machine whole."""
    routes = json.loads(process.call(["ip", "-json", "route", "show", "default"]).stdout or "[]")
    sizes = [int(Path("/sys/class/net", route["dev"], "mtu").read_text(encoding="ascii")) for route in routes]
    return min([1500, *sizes])


def _free_subnet(fleet: str) -> IPv4Network:
    """A /24 that nothing on this machine routes to, the same for the same fleet whenever it can be."""
    taken = _taken()
    first = int(fleet, 16)
    for step in range(1 << 14):
        number = (first + step) % (1 << 14)
        subnet = IPv4Network(f"10.{64 + (number >> 8)}.{number & 255}.0/24")
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise LabError("No /24 between 10.64.0.0 and 10.127.255.255 is free for a fleet: `ip route show table all`.")


def _refuse_overlap(subnet: IPv4Network) -> None:
    for other in _taken():
        if subnet.overlaps(other):
            raise LabError(
                f"The fleet's network {subnet} is now also {other} on this machine (`ip route show table all`).\n"
                "  Make the fleet anew, on another: `provision lab down`, then `provision lab up`."
            )


def _taken() -> list[IPv4Network]:
    """Every network that this machine has a route to, but the default, and its name servers."""
    routes = json.loads(process.call(["ip", "-4", "-json", "route", "show", "table", "all"]).stdout or "[]")
    words = [route["dst"] for route in routes]
    resolv = Path("/etc/resolv.conf")
    lines = resolv.read_text(encoding="utf-8").splitlines() if resolv.exists() else []
    words += [line.split()[-1] for line in lines if line.startswith("nameserver ")]
    networks = []
    for word in words:
        with contextlib.suppress(ValueError):
            networks.append(ipaddress.IPv4Network(word))
    # A route as wide as 10.0.0.0/8 leads to the world outside; a fleet's /24 is more specific and may lie within.
    return [network for network in networks if network.prefixlen > 8]  # noqa: PLR2004
