"""Roles' modules as they are, without Ansible around them: `role_module("swap", "swap_area")`."""

from types import ModuleType

import ansible.module_utils
import pytest
from engines import Replica, a_free_port, wait_for
from programs import ROLES, imported

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
    return imported(ROLES / role / "library" / f"{name}.py", f"roles_{role}_{name}")


@pytest.fixture
def role_module():
    return load


@pytest.fixture
def fake_module():
    return FakeModule


@pytest.fixture
def module_end():
    return Exit


@pytest.fixture
def replicas():
    """Three programs that answer as vLLM does."""
    found = [Replica(f"r{number}", f"127.0.0.{number + 1}") for number in (1, 2, 3)]
    yield found
    for replica in found:
        replica.kill()


@pytest.fixture
def until():
    return wait_for


@pytest.fixture
def free_port():
    return a_free_port
