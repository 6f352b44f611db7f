"""Each role states its interface, and brings about nothing that a receipt would not see.

`defaults/main.yml` and `meta/argument_specs.yml` agree, and both are documented. Tasks use this project's modules,
which note their steps; of Ansible's own only those that manage nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parent.parent / "roles"
SHARED = {"hardware_profile", "stack", "lab"}  # declared by preflight, used by several roles
# What they do is seen by other means: `reboot` follows from what runs, and `slurp` reads.
BUILT_IN = {
    "assert",
    "debug",
    "fail",
    "import_tasks",
    "include_role",
    "include_tasks",
    "include_vars",
    "meta",
    "reboot",
}
BUILT_IN |= {"set_fact", "slurp"}
# What may stand in a task beside its module. `notify` and `listen` are left out: a handler that a killed run did not
# reach is never made up for.
KEYWORDS = {"always", "any_errors_fatal", "args", "become", "become_user", "block", "changed_when", "check_mode"}
KEYWORDS |= {"delegate_facts", "delegate_to", "delay", "diff", "environment", "failed_when", "ignore_errors", "loop"}
KEYWORDS |= {"loop_control", "name", "no_log", "register", "rescue", "retries", "run_once", "tags", "throttle"}
KEYWORDS |= {"timeout", "until", "vars", "when"}


def tasks_of(entries: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All tasks of a list, those in blocks too."""
    for entry in entries or []:
        yield entry
        for part in ("block", "rescue", "always"):
            yield from tasks_of(entry.get(part, []))


def unseen(role: Path) -> list[str]:
    """Tasks that use what a receipt does not see, as sentences."""
    known = {path.stem for path in ROLES.glob("*/library/*.py")} | {f"ansible.builtin.{name}" for name in BUILT_IN}
    return [
        f"{role.name}: {file.name}: {task.get('name', 'a task')!r} uses {word}, which no receipt sees; use one of ours"
        for folder in ("tasks", "handlers")
        for file in sorted((role / folder).glob("**/*.yml"))
        for task in tasks_of(yaml.safe_load(file.read_text(encoding="utf-8")))
        for word in task
        if word not in known | KEYWORDS
    ]


def undocumented(defaults: Path) -> list[str]:
    """Top-level keys of a defaults file that no comment stands above."""
    lines = defaults.read_text(encoding="utf-8").splitlines()
    return [
        line.partition(":")[0]
        for above, line in zip(["", *lines], lines, strict=False)
        if line[:1].isalpha() and not above.startswith("#")
    ]


def problems_of(role: Path) -> list[str]:
    """What is wrong with the stated interface of one role, as sentences."""
    specs_file, defaults_file = role / "meta/argument_specs.yml", role / "defaults/main.yml"
    missing = [str(f.relative_to(ROLES)) for f in (specs_file, defaults_file, role / "README.md") if not f.is_file()]
    if missing:
        return [f"{role.name}: has no {name}" for name in missing]
    options = yaml.safe_load(specs_file.read_text(encoding="utf-8"))["argument_specs"]["main"].get("options", {})
    defaults = yaml.safe_load(defaults_file.read_text(encoding="utf-8")) or {}
    optional = {name for name, spec in options.items() if not spec.get("required")}
    found = [f"{role.name}: {name} has a default but no argument spec" for name in defaults.keys() - options.keys()]
    found += [f"{role.name}: {name} is specified but has no default" for name in optional - defaults.keys()]
    found += [f"{role.name}: {name} has no description" for name in options if not options[name].get("description")]
    found += [f"{role.name}: no comment stands above the default of {name}" for name in undocumented(defaults_file)]
    found += [
        f"{role.name}: {name} does not carry the role's name as prefix"
        for name in options.keys() - SHARED
        if not name.startswith(f"{role.name}_")
    ]
    return found + unseen(role)


def main() -> int:
    """Print what is wrong in any role; 1 if anything is."""
    roles = sorted(path for path in ROLES.iterdir() if path.is_dir())
    problems = [problem for role in roles for problem in problems_of(role)]
    print("\n".join(problems) or f"{len(roles)} roles state their interfaces")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
