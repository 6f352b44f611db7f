"""What an inventory may say: the variables that the roles declare in `meta/argument_specs.yml`, with their defaults."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from provision.content import parsed

ANSIBLE_BOOLEANS = {"yes", "no", "true", "false", "on", "off", "y", "n", "t", "f", "1", "0"}
FREE_PREFIXES = ("ansible_", "vault_", "local_", "lab_")
KINDS = {
    "str": "a string", "path": "a path", "int": "a whole number", "float": "a number", "bool": "true or false",
    "list": "a list", "dict": "a mapping", "raw": "any value",
}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """One declared variable, or one option inside a declared mapping."""

    name: str
    role: str
    type: str = "str"
    elements: str | None = None
    choices: tuple[object, ...] = ()
    required: bool = False
    secret: bool = False
    description: str = ""
    options: Mapping[str, Spec] = field(default_factory=dict)


@dataclass(frozen=True)
class Flaw:
    """A value that does not fit its Spec: what was expected, and the keys that lead to it inside the variable."""

    expected: str
    path: tuple[str, ...] = ()
    secret: bool = False
    unknown: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Schema:
    """Every declared variable, the value of each that has a default, and the constants that defaults may use."""

    specs: Mapping[str, Spec]
    defaults: Mapping[str, object]
    constants: Mapping[str, object]

    def knows(self, name: str) -> bool:
        """Whether an inventory may set a variable of this name."""
        return name in self.specs or name.startswith(FREE_PREFIXES)

    def of_role(self, role: str) -> list[Spec]:
        """What one role declares, in the order of its file."""
        return [spec for spec in self.specs.values() if spec.role == role]

    @property
    def roles(self) -> list[str]:
        """The roles that declare anything."""
        return list(dict.fromkeys(spec.role for spec in self.specs.values()))


@cache
def load_schema(root: Path) -> Schema:
    """Read the roles under `root/roles`, once in a process: it takes a third of a second."""
    specs: dict[str, Spec] = {}
    defaults: dict[str, object] = {}
    constants: dict[str, object] = {}
    for role in sorted((root / "roles").iterdir()) if (root / "roles").is_dir() else []:
        for entry in (_yaml(role / "meta/argument_specs.yml").get("argument_specs") or {}).values():
            specs.update(_specs(entry.get("options") or {}, role.name))
        defaults.update(_yaml(role / "defaults/main.yml"))
        constants.update(_yaml(role / "vars/main.yml"))
    return Schema(specs, defaults, constants)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one most likely means."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)), None)


def flaws(value: object, spec: Spec) -> list[Flaw]:
    """How a value differs from what its spec declares. A value of null counts as not set, as for Ansible."""
    if value is None:
        return [Flaw("a value", secret=spec.secret)] if spec.required else []
    if not _is(value, spec.type):
        return [Flaw(KINDS.get(spec.type, spec.type), secret=spec.secret)]
    if spec.choices:
        return _choice_flaws(value, spec)
    if isinstance(value, dict) and spec.type == "dict":
        return _mapping_flaws(value, spec)
    return _list_flaws(value, spec) if isinstance(value, list) and spec.type == "list" else []


def _choice_flaws(value: object, spec: Spec) -> list[Flaw]:
    wrong = [item for item in (value if isinstance(value, list) else [value]) if item not in spec.choices]
    if not wrong:
        return []
    near = nearest(str(wrong[0]), map(str, spec.choices))
    wanted = ", ".join(_word(choice) for choice in spec.choices)
    return [Flaw(f"one of {wanted}", secret=spec.secret, hint=f"Did you mean {near}?" if near else None)]


def _mapping_flaws(value: Mapping[object, object], spec: Spec) -> list[Flaw]:
    if not spec.options:
        return []
    found = []
    for key, item in value.items():
        inner = spec.options.get(str(key))
        if inner is None:
            near = nearest(str(key), spec.options)
            known = f"Did you mean {near}?" if near else f"It takes {', '.join(spec.options)}."
            found.append(Flaw("", (str(key),), unknown=str(key), hint=known))
        else:
            found += [_below(str(key), flaw) for flaw in flaws(item, inner)]
    missing = (name for name, inner in spec.options.items() if inner.required and name not in value)
    return found + [Flaw(f"also {name} ({KINDS.get(spec.options[name].type, '')})") for name in missing]


def _list_flaws(value: list[object], spec: Spec) -> list[Flaw]:
    found = []
    inner = Spec(spec.name, spec.role, spec.elements or "raw", secret=spec.secret, options=spec.options)
    for position, item in enumerate(value):
        found += [_below(str(position), flaw) for flaw in flaws(item, inner)]
    return found


def _below(key: str, flaw: Flaw) -> Flaw:
    return Flaw(flaw.expected, (key, *flaw.path), flaw.secret, flaw.unknown, flaw.hint)


def _is(value: object, kind: str) -> bool:
    """Whether a role that declares `kind` can use a value; Ansible does not convert the variables themselves."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    tests = {
        "int": re.fullmatch(r"-?\d+(\.0)?", str(value)) is not None,
        "float": re.fullmatch(r"-?\d+(\.\d+)?", str(value)) is not None,
        "bool": isinstance(value, bool) or str(value).lower() in ANSIBLE_BOOLEANS,
        "list": isinstance(value, list),
        "dict": isinstance(value, dict),
        "str": isinstance(value, str) or number,
        "path": isinstance(value, str),
    }
    return tests.get(kind, True)


def _word(choice: object) -> str:
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def _specs(options: Mapping[str, Any], role: str) -> dict[str, Spec]:
    return {name: _spec(name, role, option or {}) for name, option in options.items()}


def _spec(name: str, role: str, option: Mapping[str, Any]) -> Spec:
    description = option.get("description") or ""
    return Spec(
        name=name,
        role=role,
        type=option.get("type") or "str",
        elements=option.get("elements"),
        choices=tuple(option.get("choices") or ()),
        required=bool(option.get("required")),
        secret=bool(option.get("no_log")),
        description=" ".join(description) if isinstance(description, list) else str(description),
        options=_specs(option.get("options") or {}, role),
    )


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return parsed(path.read_text(encoding="utf-8")) or {}
