"""Programs and templates of roles, as they are, outside a host."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

from provision.inventory.ansible_api import _trusted as trusted

ROOT = Path(__file__).parents[3]
ROLES = ROOT / "roles"


def imported(path: Path, name: str = "") -> ModuleType:
    """A program, or a module of Ansible, as a module of its own."""
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def templar(variables: dict, *roles: str) -> Templar:
    """Ansible's own, with what these roles define."""
    known = {}
    for role in roles:
        for part in ("defaults", "vars"):
            known |= trusted(yaml.safe_load((ROLES / role / part / "main.yml").read_text())) or {}
    return Templar(loader=DataLoader(), variables={**known, **variables})
