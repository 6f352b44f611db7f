"""The worked examples are valid, each by the rules that a user's inventory is held to."""

from __future__ import annotations

from pathlib import Path

import pytest

from provision.content import content_root
from provision.inventory import load_fleet

EXAMPLES = sorted(path for path in (content_root() / "inventory").iterdir() if path.is_dir())


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid(example: Path) -> None:
    assert load_fleet(example).replicas
