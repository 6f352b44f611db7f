"""The typed interface of every role: defaults, argument_specs and their comments say the same."""

from pathlib import Path

import pytest
import yaml

ROLES = Path(__file__).parents[3] / "roles"
NAMES = sorted(path.parents[1].name for path in ROLES.glob("*/meta/argument_specs.yml"))
SHARED = {"hardware_profile", "stack", "lab"}


def load(role, place):
    path = ROLES / role / place
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


@pytest.mark.parametrize("role", NAMES)
def test_every_default_is_declared_and_every_option_has_a_default(role):
    options = load(role, "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    assert set(options) == set(load(role, "defaults/main.yml"))
    for name, option in options.items():
        assert option["type"], name
        assert option["description"], name
        assert name.startswith(f"{role}_") or (role == "preflight" and name in SHARED)


@pytest.mark.parametrize("role", NAMES)
def test_every_default_is_explained(role):
    lines = (ROLES / role / "defaults/main.yml").read_text().splitlines()
    explained = False
    for before, line in zip(["", *lines], lines, strict=False):
        if line[:1].isalpha():
            explained = before.startswith("#") or (explained and before[:1].isalpha())
            assert explained, f"{role}: {line}"


@pytest.mark.parametrize("role", NAMES)
def test_every_role_says_what_it_is(role):
    assert (ROLES / role / "README.md").exists()
    assert len((ROLES / role / "tasks/main.yml").read_text().splitlines()) <= 80
