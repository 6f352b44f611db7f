"""The receipt of a stage: which modules ran in it, with which parameters, and what facts they returned.

Running the same modules in check mode with the same parameters tells whether the stage still stands. While a stage
runs, each module that has done its work adds a line to `STAGE.pending`; the last task makes the receipt of them.
Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Iterable, Mapping

from ansible.module_utils.provision_files import remove_file, sync_directory, write_file

FOLDER = "/var/lib/provision/receipts"


def record_step(module: Any, facts: Mapping[str, Any], forget: Iterable[str] = ()) -> None:
    """Note that a module has brought about what its parameters say.

    Parameters in `forget` are left out: secrets that nobody needs in order to look again. Nothing is noted in check
    mode, or where no run and stage are named in the environment.
    """
    stage, run = (os.environ.get(name, "") for name in ("PROVISION_STAGE", "PROVISION_RUN"))
    if module.check_mode or not stage or not run:
        return
    params = {name: value for name, value in module.params.items() if name not in set(forget)}
    name = module._name.rsplit(".", 1)[-1]
    _append(stage, json.dumps({"run": run, "module": name, "params": params, "facts": dict(facts)}, sort_keys=True))


def _append(stage: str, line: str) -> None:
    """Add a line for good. One that a power cut tore is ended first: it stays alone unreadable."""
    folder = own_folder()
    descriptor = os.open(folder / f"{stage}.pending", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b") as pending:
        is_torn = pending.seek(0, os.SEEK_END) > 0 and os.pread(descriptor, 1, pending.tell() - 1) != b"\n"
        pending.write(b"\n" * is_torn + line.encode("ascii") + b"\n")
        pending.flush()
        os.fsync(descriptor)
    sync_directory(str(folder))


def own_folder() -> Path:
    """The folder of the receipts, made if need be, and closed to others: parameters may hold secrets.

    It comes with the first note of any stage, so no role lists it: a plan would promise what is there by then.
    """
    folder = Path(FOLDER)
    for path, mode in ((folder.parent, 0o755), (folder, 0o700)):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        if path.stat().st_mode & 0o777 & ~mode:
            path.chmod(mode)
    return folder


def pending_steps(stage: str, run: str) -> list[dict[str, Any]]:
    """The steps that this run has noted, in order; of one that it took again, after a failure, the last."""
    steps: dict[str, dict[str, Any]] = {}
    path = Path(FOLDER, f"{stage}.pending")
    for line in path.read_text(encoding="ascii", errors="replace").splitlines() if path.exists() else ():
        try:
            step = json.loads(line)
        except ValueError:
            continue
        if step.pop("run") == run:
            key = json.dumps([step["module"], step["params"]], sort_keys=True)
            steps.pop(key, None)
            steps[key] = step
    return list(steps.values())


def seal(stage: str, inputs: Mapping[str, str], run: str) -> None:
    """Make the receipt of this run's steps; equal steps and inputs make equal receipts."""
    receipt = {"format": 1, "stage": stage, "inputs": dict(inputs), "steps": pending_steps(stage, run)}
    own_folder()
    write_file(f"{FOLDER}/{stage}.json", json.dumps(receipt, sort_keys=True, indent=1) + "\n", 0o600)
    remove_file(f"{FOLDER}/{stage}.pending")
