"""For the packages' own scripts: `driver.py` says which version of the kernel modules now lies on the host's disk."""

from __future__ import annotations

import state


def main(version: str, arguments: list[str]) -> int:
    with state.Change() as hardware:
        if arguments == ["installed"]:
            hardware["driver"]["installed"] = version
        elif hardware["driver"]["installed"] == version:
            hardware["driver"]["installed"] = None
    return 0
