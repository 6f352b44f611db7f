"""From JSON back to the plan's dataclasses: what does not fit is told by its place in the document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

KINDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


class DoesNotFitError(ValueError):
    """The message says where in the document, what stands there, and what was expected."""


def decode(value: object, wanted: Any, where: str = "") -> Any:  # noqa: ANN401 - what comes out is what is wanted
    """A value of the wanted type, a dataclass or what its fields may be. Keys that are not known are passed over."""
    if is_dataclass(wanted):
        return _dataclass(value, wanted, where)
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin is tuple:
        items = value if isinstance(value, list) else _refuse(value, "a list", where)
        return tuple(decode(item, parts[0], f"{where}[{position}]") for position, item in enumerate(items))
    if origin is Mapping:
        entries = value if isinstance(value, dict) else _refuse(value, "a mapping", where)
        return {str(key): decode(item, parts[1], f"{where}.{key}") for key, item in entries.items()}
    allowed = parts if origin is UnionType else (wanted,)
    if type(value) in allowed or (type(value) is int and float in allowed):
        return value
    return _refuse(value, " or ".join(KINDS[kind] for kind in allowed), where)


def _dataclass(value: object, wanted: Any, where: str) -> Any:  # noqa: ANN401
    entries = value if isinstance(value, dict) else _refuse(value, "a mapping", where)
    hints, given = get_type_hints(wanted), {}
    for field in fields(wanted):
        inner = f"{where}.{field.name}" if where else field.name
        if field.name in entries:
            given[field.name] = decode(entries[field.name], hints[field.name], inner)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise DoesNotFitError(f"{inner} is missing")
    return wanted(**given)


def _refuse(value: object, expected: str, where: str) -> Any:  # noqa: ANN401
    shown = "null" if value is None else str(value) if isinstance(value, (str, int, float)) else type(value).__name__
    raise DoesNotFitError(f"{where or 'the document'} is {shown[:60] or 'empty'}; expected {expected}")
