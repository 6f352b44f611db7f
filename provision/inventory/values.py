"""Each variable of each host against what the roles declare."""

from __future__ import annotations

from pathlib import Path

from provision.content import hardware_profiles
from provision.errors import Problem
from provision.inventory.ansible_api import RawHost, RawInventory, Unresolved
from provision.inventory.lines import LineIndex, Place
from provision.inventory.schema import Flaw, Schema, Spec, flaws, nearest

AT_RUN_TIME = ("ansible_facts", "hostvars", "ansible_play")


def check_values(
    inventory: Path, raw: RawInventory, schema: Schema, index: LineIndex, serving: set[str]
) -> list[Problem]:
    """Unknown names, wrong types and choices, templates that do not resolve, and what a serving host must have."""
    problems = []
    for host in raw.hosts.values():
        for name, value in host.variables.items():
            place = index.of_host(name, host.name, host.groups)
            problems += _variable(inventory, name, value, schema, place)
        if host.name in serving:
            problems += _missing(inventory, host, schema)
    return problems


def _variable(inventory: Path, name: str, value: object, schema: Schema, place: Place | None) -> list[Problem]:
    path, line = (place.path, place.line) if place else (inventory, None)
    if not schema.knows(name):
        return [Problem(f"{name} is not a variable of any role.", path, line, _nearest_variable(name, schema))]
    spec = schema.specs.get(name)
    if isinstance(value, Unresolved):
        return _unresolved(name, value, spec, place, path)
    if spec is None:
        return []
    if name == "hardware_profile" and value and str(value) not in hardware_profiles():
        return [_unknown_profile(str(value), path, line)]
    return [_problem(name, flaw, spec, place, path) for flaw in flaws(value, spec)]


def _unresolved(name: str, value: Unresolved, spec: Spec | None, place: Place | None, path: Path) -> list[Problem]:
    if value.missing and (place is None or place.mentions(*AT_RUN_TIME)):
        return []  # what it refers to is known only once the hosts have been asked
    private = (spec is not None and spec.secret) or place is None or place.mentions("vault")
    reason = "" if private and not value.missing else f": {value.reason}"
    return [Problem(f"{name} cannot be resolved{reason}", path, place.line if place else None)]


def _problem(name: str, flaw: Flaw, spec: Spec, place: Place | None, path: Path) -> Problem:
    spot = place.key(*flaw.path) if place else None
    full = ".".join((name, *flaw.path))
    more = f"Its type and meaning: provision vars {spec.role}"
    if flaw.unknown:
        owner = ".".join((name, *flaw.path[:-1]))
        message = f"{owner} has no key {flaw.unknown}."
    else:
        given = f" is {spot.source}" if spot and spot.source is not None and not flaw.secret else ""
        message = f"{full}{given or ' does not fit'}; expected {flaw.expected}."
    hint = f"{flaw.hint}  {more}" if flaw.hint else more
    return Problem(message, path, spot.line if spot else None, hint)


def _nearest_variable(name: str, schema: Schema) -> str:
    near = nearest(name, schema.specs)
    if near:
        role = schema.specs[near].role
        return f"Did you mean {near} (role {role})?  All variables: provision vars {role}"
    return "All variables: provision vars.  Helpers of your own begin with local_."


def _unknown_profile(value: str, path: Path, line: int | None) -> Problem:
    profiles = hardware_profiles()
    near = nearest(value, profiles)
    known = f"The profiles are {', '.join(profiles)}."
    return Problem(
        f"hardware_profile {value} is not known.", path, line, f"Did you mean {near}?  {known}" if near else known
    )


def _missing(inventory: Path, host: RawHost, schema: Schema) -> list[Problem]:
    wanted = [
        spec
        for spec in schema.specs.values()
        if spec.required and spec.name not in schema.defaults and spec.name not in ("stack", *host.variables)
    ]
    return [
        Problem(
            f"{spec.name} is not set, and role {spec.role} needs it.",
            inventory,
            hint=f"Set it in group_vars/serving.yml.  {spec.description}".rstrip(),
        )
        for spec in wanted
    ]
