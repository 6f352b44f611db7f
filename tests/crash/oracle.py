"""What a host is, read by a program of the suite's own that shares nothing with the roles: equal states read equal.

`oracle_program.py` runs on the host as root and prints one JSON document. What must differ between two runs that did the same
work is left out there, each with its reason. `differences` names what differs between two readings, one line each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from provision.lab.host import LabHost

State = dict[str, Any]
PROGRAM = (Path(__file__).parent / "oracle_program.py").read_text(encoding="utf-8")
QUICK = "etc,lib,run,root,scratch,swaps,units"  # what a single module can reach; the rest of the tree costs a second


def read(host: LabHost, areas: str = "all") -> State:
    """The state of a host, read past its login."""
    done = host.run(["python3", "-", areas], input=PROGRAM)
    state: State = json.loads(done.stdout)
    return state


def differences(wanted: State, seen: State) -> list[str]:
    """Each thing in which two states differ: "files: /etc/fstab: A -> B"."""
    found = []
    for area in sorted(wanted.keys() | seen.keys()):
        old, new = _flat(wanted.get(area)), _flat(seen.get(area))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                found.append(f"{area}: {name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}")
    return found


def _flat(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, list):
        return {str(item): "present" for item in value}
    return {"": value}
