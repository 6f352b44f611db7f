"""The checks that the stage preflight makes on a host, as a module of the roles: the same lines decide in both."""

from __future__ import annotations

from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType

from provision.content import content_root


@cache
def fitness() -> ModuleType:
    """`provision_fitness`, which needs nothing but the standard library."""
    path = content_root() / "roles/host/module_utils/provision_fitness.py"
    spec = spec_from_file_location("provision_fitness", path)
    assert spec, path  # noqa: S101 - it is a file of Python
    assert spec.loader, path  # noqa: S101
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
