"""Looks at this host and says what it saw, as one JSON document.

It changes nothing: no file is written, no kernel module loaded, no service asked for. Standard library only, Python 3.9
and later; what it needs of the roles comes with it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ansible.module_utils import provision_host, provision_look

from provision.preflight.host import disks, machine, net, nvidia, packages, pci, ports, rdma, reach, weights

FORMAT = 1
DEADLINE_S = 75  # nvidia-smi takes its time where no daemon keeps the GPUs awake
Section = Callable[[Mapping[str, Any]], Any]
SECTIONS: dict[str, Section] = {
    "base": lambda asked: provision_look.base(asked["free_at"]),
    "busy": lambda _asked: provision_host.lock_holder() or {},
    "machine": machine.look,
    "disks": disks.look,
    "net": net.look,
    "pci": pci.look,
    "nvidia": nvidia.look,
    "rdma": rdma.look,
    "packages": packages.look,
    "reach": reach.look,
    "ports": ports.look,
    "weights": weights.look,
}


def main(request: str) -> None:
    """Print what each section saw, or why it saw nothing, with this host's clock before and after."""
    os.chdir("/")
    asked = json.loads(request)
    begin = time.time()
    found, errors = look(asked, DEADLINE_S)
    json.dump({"format": FORMAT, "begin": begin, "end": time.time(), "errors": errors, **found}, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # whatever still waits for a name or a card must not hold up the answer


def look(asked: Mapping[str, Any], seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """All sections at once: what they saw, and for each that failed or took too long, why."""
    found: dict[str, Any] = {}
    errors: dict[str, str] = {}

    def work(name: str, section: Section) -> None:
        try:
            found[name] = section(asked)
        except Exception as error:  # noqa: BLE001 - one thing that cannot be seen must not hide the others
            errors[name] = f"{type(error).__name__}: {error}"

    threads = [threading.Thread(target=work, args=each, daemon=True) for each in SECTIONS.items()]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = {name: f"it took more than {seconds:.0f} s" for name in SECTIONS if name not in {**found, **errors}}
    return dict(found), {**errors, **late}
