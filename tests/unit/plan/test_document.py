"""The plan's file: whole, private, never in the place of something else; and what is not a plan is told as such."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from provision.errors import InventoryError, UsageError
from provision.plan.document import document, may_write, read, write
from provision.plan.make import make_plan
from provision.plan.model import Options, Plan


@pytest.fixture
def plan(world) -> Plan:
    world.bootstrapped(serving=["r_a", "r_b"])
    world.drifted("n1", world.DRIVER, who="apt")
    world.foretold = {"n1": [world.DRIVER]}
    world.seconds = 61.5
    return make_plan(world.fleet(), Options(limit="r_a", stages=world.STAGES, lab=True)).plan


def test_what_is_written_is_read(plan, tmp_path):
    path = tmp_path / "plan.json"
    write(plan, path)
    assert read(path) == plan
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir() if "plan" in item.name] == ["plan.json"]


def test_a_plan_takes_the_place_of_a_plan_alone(plan, tmp_path):
    path = tmp_path / "plan.json"
    write(plan, path)
    write(plan, path)
    for text in ("precious", "{}", "[1]"):
        path.write_text(text)
        with pytest.raises(UsageError, match="is not a plan"):
            write(plan, path)
        assert path.read_text() == text
    with pytest.raises(UsageError, match="no directory"):
        may_write(tmp_path / "none/plan.json")


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw.pop(key)


def put(value: object, *keys: str | int) -> Callable[[dict[str, Any]], None]:
    def edit(raw: Any) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        raw[keys[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (put("poem", "kind"), "is not a plan: expected a JSON object whose kind is `provision plan`"),
        (put(99, "format"), "is a plan of format 99; this provision reads format 1"),
        (without("changes"), "changes is missing"),
        (put(7, "hosts"), "hosts is 7; expected a list"),
        (put([1], "hosts"), r"hosts\[0\] is 1; expected a string"),
        (put([], "inputs"), "inputs is list; expected a mapping"),
        (put("yes", "options", "full"), "options.full is yes; expected true or false"),
        (put(True, "now", "kv_tokens"), "now.kv_tokens is True; expected a whole number or null"),
        (put("explode", "changes", "n1", 0, "effect"), r"changes.n1\[0\].effect is explode; expected one of none"),
        (put(None, "changes", "n1", 0, "reason"), r"changes.n1\[0\].reason is null; expected a mapping"),
        (put("soon", "waves", 0, "seconds"), r"waves\[0\].seconds is soon; expected a number or null"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(plan, tmp_path, edit, said):
    raw, path = json.loads(json.dumps(document(plan))), tmp_path / "plan.json"
    edit(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(InventoryError, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "provision plan INVENTORY --out" in str(caught.value)


@pytest.mark.parametrize(("text", "said"), [("", "not JSON"), ("[]", "is not a plan"), (None, "cannot be read")])
def test_no_plan_at_all(tmp_path, text, said):
    path = tmp_path / "plan.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InventoryError, match=said):
        read(path)


def test_what_a_later_version_adds_is_passed_over(plan, tmp_path):
    raw, path = document(plan), tmp_path / "plan.json"
    path.write_text(json.dumps(raw | {"more": 1}))
    assert read(path) == plan
