"""The plan on disk: one JSON document, readable by its owner alone. Its schema is plan.schema.json."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any

from provision.errors import InventoryError, Problem, UsageError
from provision.plan.decode import DoesNotFitError, decode
from provision.plan.model import EFFECTS, FORMAT, KIND, Plan

AGAIN = "Make one:  provision plan INVENTORY --out {}"


def document(plan: Plan) -> dict[str, Any]:
    """The plan as JSON has it."""
    return asdict(plan)


def may_write(path: Path) -> None:
    """Raise UsageError where a plan cannot be written, before any work is done for it: what is no plan stays."""
    if path.exists() and _is_plan(path) is False:
        raise UsageError(f"--out: {path} exists and is not a plan; it is left as it is. Name another file.")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"--out: there is no directory {path.absolute().parent}.")


def write(plan: Plan, path: Path) -> None:
    """Put the plan in place whole: written beside it, synced, renamed."""
    may_write(path)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(document(plan), file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        beside.rename(path)
    except OSError as error:
        raise UsageError(f"--out: {path} cannot be written: {error.strerror}.") from error
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path) -> Plan:
    """The plan of a file. Raises InventoryError that names the file, what is wrong in it, and what was expected."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _not_a_plan(path, f"cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise _not_a_plan(path, f"is not a plan: not JSON ({error}).") from error
    if not isinstance(raw, dict) or raw.get("kind") != KIND:
        raise _not_a_plan(path, f"is not a plan: expected a JSON object whose kind is `{KIND}`.")
    if raw.get("format") != FORMAT:
        by = f"; it was made by provision {raw['version']}" if "version" in raw else ""
        message = f"is a plan of format {raw.get('format')}; this provision reads format {FORMAT}{by}."
        raise _not_a_plan(path, message)
    try:
        plan: Plan = decode(raw, Plan)
        _check_effects(plan)
    except DoesNotFitError as error:
        raise _not_a_plan(path, f"is not a whole plan: {error}.") from error
    return plan


def _check_effects(plan: Plan) -> None:
    for host, changes in plan.changes.items():
        for position, change in enumerate(changes):
            if change.effect not in EFFECTS:
                where = f"changes.{host}[{position}].effect"
                raise DoesNotFitError(f"{where} is {change.effect}; expected one of {', '.join(EFFECTS)}")


def _not_a_plan(path: Path, message: str) -> InventoryError:
    return InventoryError([Problem(message, path, hint=AGAIN.format(path))])


def _is_plan(path: Path) -> bool:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(raw, dict) and raw.get("kind") == KIND
