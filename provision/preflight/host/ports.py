"""Who listens on the TCP ports that Ray and vLLM of this inventory take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ansible.module_utils.provision_host import read_text

from provision.preflight.host.processes import describe, holders

LISTENS = "0A"


def look(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each port in use of those asked for, with what it is for and who has it."""
    listening = {**dict(listeners("/proc/net/tcp")), **dict(listeners("/proc/net/tcp6"))}
    found = []
    for port, inode in sorted(listening.items()):
        wanted = next((each for each in asked["ports"] if each["from"] <= port <= each["to"]), None)
        if wanted:
            pids = sorted(holders().get(f"socket:[{inode}]", ()))
            found.append({"port": port, "wanted_by": wanted["wanted_by"], **describe(pids[0] if pids else 0)})
    return found


def listeners(table: str) -> Iterator[tuple[int, str]]:
    """Port and inode of each listening socket, from the kernel's table."""
    for line in (read_text(table) or "").splitlines()[1:]:
        words = line.split()
        if words[3] == LISTENS:
            yield int(words[1].rsplit(":", 1)[1], 16), words[9]
