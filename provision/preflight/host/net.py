"""Networks as the host sees them: interfaces with MTU and addresses, name servers, its own name."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from typing import Any

from ansible.module_utils.provision_host import read_text, run


def look(_asked: Mapping[str, Any]) -> dict[str, Any]:
    """Interfaces, name servers, and whether the host resolves its own name."""
    name = socket.gethostname()
    resolver = read_text("/etc/resolv.conf") or ""
    return {
        "interfaces": interfaces(run(["ip", "-json", "address", "show"], timeout_s=10).out),
        "name_servers": re.findall(r"^\s*nameserver\s+(\S+)", resolver, re.MULTILINE),
        "name": name,
        "resolves_itself": resolves(name),
    }


def interfaces(text: str) -> list[dict[str, Any]]:
    """Every interface but the loopback, from iproute2's own JSON."""
    return [
        {
            "name": link["ifname"],
            "mtu": link["mtu"],
            "up": "LOWER_UP" in link["flags"],
            "addresses": [address["local"] for address in link.get("addr_info", [])],
        }
        for link in json.loads(text or "[]")
        if "LOOPBACK" not in link["flags"]
    ]


def resolves(name: str) -> bool:
    """Whether a name has an address."""
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True
