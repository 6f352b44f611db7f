"""From what Ansible returns for a task to what a person and a program want to know of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from provision.converge.result import Difference

TAIL_LINES = 8
LONGEST = 20_000  # characters of one side of a difference: a program that a host gets is not read here
EMPTY_MESSAGES = {"", "non-zero return code", "All items completed", "One or more items failed", "MODULE FAILURE"}


def differences(result: Mapping[str, Any]) -> tuple[Difference, ...]:
    """What a result says it changed: the diffs of our modules and of Ansible's own, of every item of a loop."""
    found = []
    for item in _items(result):
        diffs = item.get("diff") or []
        for diff in diffs if isinstance(diffs, list) else [diffs]:
            if isinstance(diff, dict):
                found += list(_difference(diff, item))
    return tuple(found)


def actions(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What a module says it did, in sentences."""
    return tuple(str(action) for item in _items(result) for action in item.get("actions") or ())


def effects(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What each of the actions takes besides, in the same order."""
    return tuple(str(effect) for item in _items(result) for effect in item.get("effects") or ())


def message(result: Mapping[str, Any]) -> str:
    """Why a task failed: the module's own words, with the last lines of a program's output where it ran one."""
    if "censored" in result and not result.get("msg"):
        return "It failed; its output is secret (no_log) and not shown."
    failed = [item for item in result.get("results") or () if isinstance(item, dict) and item.get("failed")]
    if failed:
        named = [
            f"{item['item']}: {message(item)}" if isinstance(item.get("item"), str) else message(item)
            for item in failed
        ]
        return "\n".join(dict.fromkeys(named))
    said = str(result.get("msg") or "").strip()
    output = str(result.get("stderr") or result.get("module_stderr") or result.get("stdout") or "").strip()
    if "rc" in result and output and output not in said:
        tail = "\n".join(output.splitlines()[-TAIL_LINES:])
        command = result.get("cmd")
        ran = " ".join(map(str, command)) if isinstance(command, list) else str(command or "")
        head = f"`{ran}` ended with {result['rc']}:" if said in EMPTY_MESSAGES and ran else said
        return f"{head}\n{tail}".strip()
    if said.startswith("MODULE FAILURE") or said in EMPTY_MESSAGES:
        trace = str(result.get("exception") or output).strip().splitlines()
        return f"The module ended unexpectedly: {trace[-1]}" if trace else said or "It failed and gave no reason."
    return said


def _items(result: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The results of a loop that changed something, or the result itself."""
    results = result.get("results")
    if not isinstance(results, list):
        yield result
        return
    yield from (item for item in results if isinstance(item, dict) and (item.get("changed") or item.get("failed")))


def _difference(diff: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[Difference]:
    resource = str(
        diff.get("after_header") or diff.get("before_header") or result.get("path") or result.get("dest") or ""
    ).removesuffix(" (content)")
    if "prepared" in diff:
        if str(diff["prepared"]).strip():
            yield Difference(resource, "", str(diff["prepared"]))
        return
    before, after = diff.get("before"), diff.get("after")
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        if keys:
            named = keys != ["state"]
            pair = [
                ", ".join(f"{key} {side.get(key)}" if named else str(side.get(key)) for key in keys)
                for side in (before, after)
            ]
            yield Difference(str(result.get("path") or after.get("path") or resource), *pair)
    elif before != after:
        yield Difference(resource, _text(before), _text(after))


def _text(value: object) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else yaml.safe_dump(value, sort_keys=False).strip()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\n({len(text) - LONGEST} more characters)\n"
