"""Roles' modules as they are, without Ansible around them: `role_module("swap", "swap_area")`."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import ansible.module_utils
import pytest

ROLES = Path(__file__).parents[3] / "roles"
ansible.module_utils.__path__.append(str(ROLES / "host" / "module_utils"))


class Exit(Exception):  # noqa: N818  it is how a module ends, not an error
    """How a module ended: `result` as it would be returned."""

    def __init__(self, result: dict):
        super().__init__(result.get("msg", ""))
        self.result = result


class FakeModule:
    """What `converge` needs of an AnsibleModule."""

    def __init__(self, check_mode: bool = False, **params):
        self.check_mode, self.params, self._name = check_mode, params, "fake"

    def exit_json(self, **result):
        raise Exit({"failed": False, **result})

    def fail_json(self, **result):
        raise Exit({"failed": True, **result})


def load(role: str, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"roles_{role}_{name}", ROLES / role / "library" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def role_module():
    return load


@pytest.fixture
def fake_module():
    return FakeModule


@pytest.fixture
def module_end():
    return Exit
