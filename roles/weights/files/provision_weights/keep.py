"""What lies on this host of a model: which commits, which is served; switching between them, removing others."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from provision_weights.errors import RefusedError
from provision_weights.files import is_sealed
from provision_weights.spec import Spec

COMMIT = re.compile("[0-9a-f]{40}")
VLLM = "/etc/provision/vllm.yaml"


def status(spec: Spec) -> dict[str, Any]:
    """All that is known here of the model."""
    links = {name: target(spec.base / name) for name in ("current", "previous")}
    existing = next((path for path in (spec.base, *spec.base.parents) if path.is_dir()), Path("/"))
    return {
        **links,
        "repo": spec.repo,
        "commit": spec.commit,
        "commits": [commit_of(spec.base, name) for name in sorted(names(spec.base))],
        "in_use": sorted(in_use(spec.base)),
        "free": shutil.disk_usage(existing).free,
        "state": told(spec),
        "now": time.time(),
    }


def target(link: Path) -> str:
    """Where a link points; empty for none."""
    return os.readlink(link) if link.is_symlink() else ""


def told(spec: Spec) -> dict[str, Any]:
    """What who fetches last said, without the sizes of single files."""
    with contextlib.suppress(OSError, ValueError):
        state: dict[str, Any] = json.loads(Path(spec.state, "state.json").read_text(encoding="utf-8"))
        return {name: value for name, value in state.items() if name not in ("sizes", "verified")}
    return {}


def names(base: Path) -> set[str]:
    """The commits of which something lies here."""
    found = {path.name.partition(".")[0] for path in base.iterdir()} if base.is_dir() else set()
    return {name for name in found if COMMIT.fullmatch(name)}


def commit_of(base: Path, name: str) -> dict[str, Any]:
    """One commit: how much of it lies here, how much belongs to it, and whether all of that is verified."""
    files = manifest(base / f"{name}.json") or manifest(base / f"{name}.partial/.manifest.json")
    folders = [base / name, base / f"{name}.partial"]
    bad = [each for each, entry in files.items() if not is_sealed(base / name / each, entry)]
    return {
        "commit": name,
        "here": sum(size_of(folder) for folder in folders),
        "bytes": sum(entry["size"] for entry in files.values()),
        "files": len(files),
        "whole": bool(files) and not bad,
        "bad": bad[:5],
    }


def manifest(path: Path) -> dict[str, Any]:
    """The files that a manifest lists; none where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return dict(json.loads(path.read_text(encoding="utf-8"))["files"])
    return {}


def size_of(folder: Path) -> int:
    """Bytes below a directory."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0


def in_use(base: Path) -> set[str]:
    """The commits that a process has open or mapped, and the one that vLLM is configured for."""
    found = re.compile(re.escape(str(base)) + "/([0-9a-f]{40})")
    with contextlib.suppress(OSError):
        return set(found.findall(Path(VLLM).read_text(encoding="utf-8"))) | set(opened(found))
    return set(opened(found))


def opened(found: re.Pattern[str]) -> Iterator[str]:
    """What the processes of this host hold of it."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield from found.findall((process / "maps").read_text(encoding="utf-8", errors="replace"))
        with contextlib.suppress(OSError):
            for link in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    yield from found.findall(os.readlink(link))


def switch(spec: Spec) -> dict[str, Any]:
    """Point `current` to the commit, which must be whole; `previous` to what it pointed to."""
    there = commit_of(spec.base, spec.commit)
    if not there["whole"]:
        missing = f"{there['bad'][0]} is not verified" if there["bad"] else "it was not fetched"
        raise RefusedError(f"{spec.commit[:12]} is not whole on this host ({missing}), so nothing was switched.")
    before = target(spec.base / "current")
    if before != spec.commit:
        for name, commit in (("previous", before), ("current", spec.commit)):
            if commit:
                new = spec.base / f".{name}.new"
                new.unlink(missing_ok=True)
                new.symlink_to(commit)
                os.replace(new, spec.base / name)
    return {"before": before, "current": spec.commit}


def garbage(spec: Spec) -> dict[str, int]:
    """The commits that nobody needs, with their bytes: not what is served, was served before, is wanted, or is open."""
    links = {target(spec.base / name) for name in ("current", "previous")}
    kept = {spec.commit, *links, *spec.keep, *in_use(spec.base)}
    return {name: commit_of(spec.base, name)["here"] for name in sorted(names(spec.base) - kept)}


def collect(spec: Spec, *, remove: bool) -> dict[str, Any]:
    """What would be removed; with `remove` it is."""
    found = garbage(spec)
    for name in found if remove else ():
        (spec.base / f"{name}.json").unlink(missing_ok=True)  # first, so that what is half removed counts for nothing
        for folder in (spec.base / name, spec.base / f"{name}.partial"):
            shutil.rmtree(folder, ignore_errors=True)
        (spec.base / f".{name}.lock").unlink(missing_ok=True)
    return {"commits": found, "removed": remove, "free": shutil.disk_usage(spec.directory).free}
