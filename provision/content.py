"""Where the playbooks, roles and example inventories lie: in the checkout, or inside the installed wheel."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
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


def nccl_objection(name: str) -> str:
    """What is wrong with a variable's name, as NCCL would never say; the roles' modules ask the same."""
    return str(of_roles("provision_nccl").objection(name))


def of_roles(name: str) -> ModuleType:
    """What the roles' modules share, standard library only: the same rule decides on both sides."""
    return _of_roles(content_root() / f"roles/host/module_utils/{name}.py")


@cache
def _of_roles(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec, path  # noqa: S101 - it is a file of Python
    assert spec.loader, path  # noqa: S101
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
