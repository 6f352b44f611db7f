"""The hosts of a site that hold a model's weights, or are to."""

from __future__ import annotations

import json

from rehearsal import Site

UNIT = "provision-weights.service"
STATE = "/var/lib/provision/weights/state.json"


class Holders:
    """The site, and what its hosts hold below one directory."""

    def __init__(self, site: Site, hosts: tuple[str, ...], base: str) -> None:
        self.site, self.hosts, self.base = site, hosts, base

    def forget(self, *hosts: str) -> None:
        """Have hosts, all without any, hold nothing, as if they had never had it."""
        for host in hosts or self.hosts:
            self.site.sh(host, f"systemctl stop {UNIT}; rm -rf {self.base} {STATE}")

    def state(self, host: str) -> dict:
        """What who fetches there last said."""
        return json.loads(self.site.sh(host, f"cat {STATE} 2>/dev/null || echo {{}}"))
