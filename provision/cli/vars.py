"""`provision vars`: what an inventory may set."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator

import click
import yaml

from provision.content import content_root
from provision.errors import UsageError
from provision.inventory.schema import Schema, Spec, load_schema, nearest

MARKUP = re.compile(r"\b[BCIOUV]\(([^)]*)\)")  # as in Ansible's own documentation: C(code), I(italic)


@click.command(name="vars")
@click.argument("role", required=False)
@click.option("--json", "as_json", is_flag=True, help="As one JSON array.")
def variables(role: str | None, as_json: bool) -> None:
    """List the variables of ROLE (or the one variable of that name), or of every role."""
    schema = load_schema(content_root())
    if role is not None and role in schema.specs:
        specs = [schema.specs[role]]
    elif role is None or role in schema.roles:
        specs = [spec for name in schema.roles if role in (None, name) for spec in schema.of_role(name)]
    else:
        near = nearest(role, [*schema.roles, *schema.specs])
        raise UsageError(
            f"No role or variable {role}. " + (f"Did you mean {near}?" if near else f"Roles: {', '.join(schema.roles)}")
        )
    if as_json:
        click.echo(json.dumps([_record(spec, schema) for spec in specs], indent=2, ensure_ascii=False))
        return
    last = None
    for spec in specs:
        if spec.role != last:
            click.echo(f"{'' if last is None else chr(10)}role {spec.role}")
            last = spec.role
        for line in _lines(spec, schema.defaults.get(spec.name), "  "):
            click.echo(line)


def _lines(spec: Spec, default: object, indent: str) -> Iterator[str]:
    kind = f"{spec.type} of {spec.elements}" if spec.elements else spec.type
    facts = [kind, "required" if spec.required and default is None else f"default {_shown(default)}"]
    if spec.choices:
        facts.append("one of " + ", ".join(_shown(choice) for choice in spec.choices))
    yield f"{indent}{click.style(spec.name, bold=True)}  {' · '.join(facts)}"
    yield from textwrap.wrap(
        MARKUP.sub(r"\1", spec.description), 96, initial_indent=f"{indent}    ", subsequent_indent=f"{indent}    "
    )
    for option in spec.options.values():
        yield from _lines(option, None, f"{indent}    ")


def _shown(value: object) -> str:
    if value is None:
        return "none"
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip()


def _record(spec: Spec, schema: Schema) -> dict[str, object]:
    return {
        "name": spec.name,
        "role": spec.role,
        "type": spec.type,
        "elements": spec.elements,
        "choices": list(spec.choices),
        "required": spec.required,
        "default": schema.defaults.get(spec.name),
        "description": spec.description,
        "options": [_record(option, schema) for option in spec.options.values()],
    }
