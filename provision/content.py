"""Where the playbooks, roles and example inventories lie: in the checkout, or inside the installed wheel."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml


def content_root() -> Path:
    """The directory that holds `playbooks/`, `roles/` and `inventory/`."""
    packaged = Path(str(files("provision"))) / "content"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent


def parsed(text: str) -> Any:  # noqa: ANN401 - whatever it says
    """What a file of the content says in YAML; by libyaml where PyYAML has it, which takes a tenth of the time."""
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe


def hardware_profiles() -> dict[str, dict[str, object]]:
    """Every hardware profile by name, as the preflight role and the lab use it."""
    return _profiles(content_root())


@cache
def _profiles(root: Path) -> dict[str, dict[str, object]]:
    """Read once in a process: it is asked for every host, and takes a tenth of a second."""
    text = (root / "roles/preflight/vars/main.yml").read_text(encoding="utf-8")
    profiles: dict[str, dict[str, object]] = parsed(text)["preflight_profiles"]
    return profiles


def nccl_objection() -> Callable[[str], str]:
    """What is wrong with a variable's name, as NCCL would never say; the roles' modules ask the same."""
    return _nccl_objection(content_root())


@cache
def _nccl_objection(root: Path) -> Callable[[str], str]:
    objection: Callable[[str], str] = runpy.run_path(str(root / "roles/host/module_utils/provision_nccl.py"))[
        "objection"
    ]
    return objection
