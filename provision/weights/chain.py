"""The chains: the hosts that hold the same model, in the order in which they hand it on."""

from __future__ import annotations

import ipaddress

from provision.inventory.model import Fleet, Host


def chains(fleet: Fleet) -> dict[str, list[str]]:
    """The addresses of the hosts that serve each model, by its name: the order of the inventory, the same for all.

    A host without an address of its own (only a name) is left out, and fetches for itself.
    """
    found: dict[str, list[str]] = {}
    for host in fleet.serving:
        address, repo = address_of(host), str(host.variables.get("weights_repo") or "")
        if repo and host.variables.get("weights_fan_out", True) and address not in ("", *found.get(repo, ())):
            found.setdefault(repo, []).append(address)
    return {repo: chain for repo, chain in found.items() if len(chain) > 1}


def address_of(host: Host) -> str:
    """The address at which the others of its chain find a host; empty where the inventory only has a name."""
    told = str(host.variables.get("weights_address") or host.ray_address)
    try:
        return str(ipaddress.ip_address(told))
    except ValueError:
        return ""
