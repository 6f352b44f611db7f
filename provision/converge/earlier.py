"""The inventories of earlier runs, kept beside their journals: by one of them a replica goes back to what it served.

Going back is a bootstrap like any other, of one replica and of the stages that make what it serves, by the inventory as
it was then. So it is drained, changed, judged and admitted as ever, and there is no second way to converge.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from provision.converge.history import RunRecord, load, runs
from provision.converge.inputs import CODE, Inputs, inputs_of
from provision.converge.journal import Journal
from provision.converge.scrub import Scrubber, is_secret, secret_values
from provision.errors import UsageError
from provision.inventory import Fleet, Replica, load_fleet
from provision.inventory.ansible_api import IGNORED_FILES, password_files
from provision.serving.endpoint import told_to_gateways

KEPT = "inventory"  # in a run's directory
BESIDE = ("group_vars", "host_vars", "stack.lock.yml")  # what belongs to an inventory that is one file
LARGEST = 16 << 20  # bytes; no inventory is, unless it lies among other things
CLEAR_KEY = b"PRIVATE KEY-----"
ASSIGNED = re.compile(r"(?P<name>\b[A-Za-z_]\w*)[\"']?[ \t]*[:=](?P<value>[^\n]*)")
# What decides what a replica serves; and what it goes back through. Not the driver: going back shall reboot nothing.
SERVED_BY = ("serving_env", "weights", "ray", "vllm")
STAGES = ("transfer", "fabric", *SERVED_BY)


def keep(fleet: Fleet, journal: Journal) -> None:
    """Copy a fleet's inventory to where a run is kept; where that may not or cannot be, note in its run.json why."""
    path = fleet.sources[0]  # of a run that goes back, the one of then
    try:
        files = dict(_files(path))
        reason = _secret(files, fleet)
        if not reason:
            _write(journal.directory / KEPT, files)
    except (OSError, _TooLargeError) as error:
        reason = f"it cannot be copied: {error}"
    if reason:
        journal.note(not_kept=reason)


def note(fleet: Fleet, inputs: Inputs, journal: Journal) -> None:
    """Note in run.json what each replica serves by this inventory, as a hash."""
    journal.note(serving={replica.name: _served(replica, inputs) for replica in fleet.replicas})


def earlier(fleet: Fleet, replica: Replica, asked: str | None = None) -> RunRecord:
    """The run to whose inventory a replica goes back: the newest that left it standing with something else.

    With something else than the newest run that was to change the replica, whatever became of that one. If that one
    went back itself, it is gone on with where it did not come to its end, and else gone back further. `asked` names
    another run, as for `history.load`. Raises UsageError if there is none, or if that one cannot be gone back to.
    """
    made = [run for run in runs(fleet.path, lab=fleet.overlaid) if _touched(run, replica)]
    back_to = made[0].facts.get("back_to") if made else None
    if asked or (back_to and not _stood(made[0], replica)):
        run = load(str(asked or back_to))
        if why := _unfit(run, fleet, replica):
            raise UsageError(f"{replica.name} cannot go back to run {run.id}: {why}.")
        return run
    stood = [run for run in made if _stood(run, replica) and not (back_to and str(back_to) <= run.id < made[0].id)]
    if stood and stood[0] is not made[0] and _made_of(stood[0], replica) == _made_of(made[0], replica):
        raise UsageError(
            f"Run {made[0].id} was to make of {replica.name} what it served before, so that is not what failed.\n"
            f"  See why it did:  provision show {made[0].id}\n"
            f"  To go back further, name a run of  provision history {fleet.path}  by --to"
        )
    left = [run for run in stood if _made_of(run, replica) != _made_of(made[0], replica)]
    alike = [run for run in left if _made_of(run, replica) == _made_of(left[0], replica)]
    for run in alike:
        if _place(run, fleet).exists():
            return run
    why = f"\n  The inventory of {left[0].id} was not kept: {_unfit(left[0], fleet, replica)}." if left else ""
    raise UsageError(
        f"No run that this controller keeps left {replica.name} with anything but what the last one was to make of it."
        f"{why}\n  Take the change out of {fleet.path}, then:  provision bootstrap {fleet.path}"
    )


def as_it_was(fleet: Fleet, replica: Replica, run: RunRecord) -> Fleet:
    """The fleet by the inventory of an earlier run, to be changed under the name that it has now.

    Raises UsageError where more has changed since than what the replica serves, or where the inventory does not make of
    it what it did; and InventoryError if it is not valid any more.
    """
    then = replace(load_fleet(_place(run, fleet), fleet.sources[1:]), path=fleet.path)
    there = _places(then, replica)
    moved = [name for name, value in _places(fleet, replica).items() if there.get(name) != value]
    if moved:
        raise UsageError(
            f"{replica.name} does not go back to run {run.id}: since then {' and '.join(moved)} changed, which takes "
            f"more than one replica.\n  Take the change out of {fleet.path}, then:  provision bootstrap {fleet.path}"
        )
    own = next(one for one in then.replicas if one.name == replica.name)
    if _served(own, inputs_of(then)) != _made_of(run, replica):
        raise UsageError(
            f"{replica.name} does not go back to run {run.id}: by the same inventory it would not be today what it was "
            "then. Something outside of it has changed: provision itself or its default versions, the environment, a "
            f"file elsewhere.\n  Take the change out of {fleet.path}, then:  provision bootstrap {fleet.path}"
        )
    return then


class _TooLargeError(Exception):
    pass


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """What belongs to an inventory, by its name from the folder above; hidden files do not, as for Ansible."""
    tops = [path] if path.is_dir() else [path, *(path.parent / name for name in BESIDE)]
    size = 0
    for file in (file for top in tops for file in _walk(top)):
        size += file.stat().st_size
        if size > LARGEST:
            raise _TooLargeError(f"{path} is larger than {LARGEST >> 20} MiB")
        yield str(file.relative_to(path.parent)), file.read_bytes()


def _walk(top: Path) -> Iterator[Path]:
    if top.is_file():
        yield top
    passwords = password_files()
    for folder, folders, names in os.walk(top, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (
            Path(folder, name) for name in sorted(names) if not (name.startswith(".") or name.endswith(IGNORED_FILES))
        )
        yield from (path for path in paths if path.is_file() and path.resolve() not in passwords)


def _secret(files: Mapping[str, bytes], fleet: Fleet) -> str | None:
    """Which file must not be copied: a secret that is not encrypted lies in it. None if all may be.

    Told by its value, and by its name for what is overruled, or belongs to hosts that are there no more.
    """
    scrubber = Scrubber(secret_values(fleet))
    for name, data in files.items():
        text = data.decode(errors="replace")
        if CLEAR_KEY in data:
            return f"{name} holds a private key; keep it outside of the inventory"
        if scrubber.text(text) != text or any(map(_is_clear, ASSIGNED.finditer(text))):
            return f"{name} holds a secret in clear text; encrypt it: ansible-vault encrypt_string"
    return None


def _is_clear(assigned: re.Match[str]) -> bool:
    """Whether a secret variable is given a value that stands there as it is."""
    name, value = assigned.group("name"), re.sub(r"(^|\s+)#.*$", "", assigned.group("value")).strip(" ,}")
    hidden = value.startswith("!vault") or "{{" in value
    return is_secret(name) and not hidden and value.strip("\"'") not in ("", "null", "~")


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files for their owner alone; the folder has its name only once all of them lie in it."""
    beside = folder.with_name(f"{folder.name}.new")
    for name, data in files.items():
        path = beside / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
    beside.rename(folder)


def _served(replica: Replica, inputs: Inputs) -> str:
    """One hash of all that decides what a replica serves, but for provision's own code."""
    known = [
        (host.name, stage, sorted(item for item in inputs[host.name][stage].items() if _decides(item[0])))
        for host in replica.hosts
        for stage in SERVED_BY
    ]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def _decides(name: str) -> bool:
    """Whether an input decides what is served: no part of provision, no key, nor how a host reaches the world."""
    variable = name.partition("@")[0]
    return not (variable in CODE or variable.startswith("site_") or is_secret(variable))


def _made_of(run: RunRecord, replica: Replica) -> str | None:
    """What a run was to make of a replica, as the hash that it noted."""
    return (run.facts.get("serving") or {}).get(replica.name)


def _touched(run: RunRecord, replica: Replica) -> bool:
    """Whether a run was to bring what a replica serves, or a part of it, to what its inventory said."""
    its = {host.name for host in replica.hosts} & set(run.hosts) and set(SERVED_BY) & set(run.stages)
    return bool(its and _made_of(run, replica)) and not (run.check or run.refused)


def _stood(run: RunRecord, replica: Replica) -> bool:
    """Whether a run left all that a replica serves as its inventory said."""
    whole = {host.name for host in replica.hosts} <= run.good and set(SERVED_BY) <= set(run.stages)
    return whole and _touched(run, replica)


def _unfit(run: RunRecord, fleet: Fleet, replica: Replica) -> str | None:
    """Why a replica cannot go back to what a run left; None if it can."""
    if run.inventory != fleet.path.resolve() or run.lab != fleet.overlaid:
        return f"it was {'a rehearsal ' if run.lab else ''}of {run.inventory}"
    if not _stood(run, replica):
        return f"it did not leave all of {replica.name} standing"
    if not _place(run, fleet).exists():
        return str(run.facts.get("not_kept") or f"its inventory is gone from {run.directory}")
    return None


def _place(run: RunRecord, fleet: Fleet) -> Path:
    return run.directory / KEPT / fleet.path.resolve().name


def _places(fleet: Fleet, replica: Replica) -> dict[str, object]:
    """What clients, gateways and the other hosts know of a replica, which it cannot change by itself."""
    own = next((one for one in fleet.replicas if one.name == replica.name), None)
    if own is None:
        return {}
    return {
        f"the hosts of {replica.name}": [(host.name, host.address) for host in own.hosts],
        "where it answers": told_to_gateways(fleet)[replica.name],
        "vllm_api_key": own.head.setting("vllm_api_key"),
        "vllm_served_model_name": own.head.setting("vllm_served_model_name") if len(fleet.replicas) > 1 else "",
        "the gateways": [(host.name, host.address) for host in fleet.gateways],
    }
