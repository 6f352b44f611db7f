"""The model's files that are on the host already, told by the manifests that earlier runs left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.provision_sealed import is_sealed


def look(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Each commit that is there and whether it is whole, and what lies half downloaded, in bytes."""
    wanted = asked["weights"]
    base = Path(wanted["dir"], wanted["repo"].replace("/", "--"))
    if not wanted["repo"] or not base.is_dir():
        return {"commits": [], "partial": 0}
    partial = sum(
        file.stat().st_size for folder in base.glob("*.partial") for file in folder.rglob("*") if file.is_file()
    )
    return {"commits": [_commit(path) for path in sorted(base.glob("*.json"))], "partial": partial}


def _commit(manifest: Path) -> dict[str, Any]:
    told = json.loads(manifest.read_text(encoding="utf-8"))
    place, files = manifest.with_suffix(""), told["files"]
    good = [name for name, wanted in files.items() if is_sealed(place / name, wanted)]
    return {
        "commit": manifest.stem,
        "revision": str(told.get("revision", "")),
        "files": len(files),
        "good": len(good),
        "bytes": sum(wanted["size"] for wanted in files.values()),
    }
