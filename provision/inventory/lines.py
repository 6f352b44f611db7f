"""Where in which file a variable stands.

Ansible merges its sources and forgets where a value came from (what it remembers is private to it), so this reads the
YAML files of an inventory a second time, for their marks alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from provision.errors import Problem

HOSTS_SUFFIXES = {".yml", ".yaml", ".json"}  # of others (INI, plugins, programs) no lines are known
VARIABLES_SUFFIXES = {"", *HOSTS_SUFFIXES}
SHOWN_LENGTH = 60


@dataclass(frozen=True)
class Place:
    """One definition of a variable. `source` is the text in the file if it may be shown: a short scalar, no vault."""

    path: Path
    line: int
    source: str | None
    node: yaml.Node

    def key(self, *names: str) -> Place:
        """The place of a key inside this variable's value; this place itself if the value is not written there."""
        node, line = self.node, self.line
        for name in names:
            found = _entry(node, name)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        return Place(self.path, line, _shown(node), node)

    def mentions(self, *words: str) -> bool:
        """Whether the definition, as it stands in the file, has one of the words in it."""
        text = yaml.serialize(self.node)
        return any(word in text for word in words)


class LineIndex:
    """Every variable's definitions in the YAML files of some sources, by what they are said of."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._places: dict[tuple[str, str], dict[str, Place]] = {}
        self._group_lines: dict[str, Place] = {}

    def add(self, source: Path) -> None:
        """Read a source (a directory or a file) and the group_vars and host_vars beside its files."""
        for path in _hosts_files(source):
            root = self._compose(path)
            if root is None or not _child(root, "plugin"):  # what configures an inventory plugin has no groups
                self._groups(path, root)
        base = source if source.is_dir() else source.parent
        for kind in ("group", "host"):
            for name, path in _variable_files(base / f"{kind}_vars"):
                self._variables((kind, name), path, self._compose(path))

    def of_host(self, name: str, host: str, groups: tuple[str, ...]) -> Place | None:
        """Where the value that a host has for a variable stands: its own, else of its closest group that has one."""
        ranges = [("host", written) for kind, written in self._places if kind == "host" and _covers(written, host)]
        scopes = [("host", host), *ranges, *(("group", group) for group in groups), ("group", "all")]
        return next((self._places[s][name] for s in scopes if name in self._places.get(s, {})), None)

    def of_group(self, group: str) -> Place | None:
        """Where a group is first named in a hosts file."""
        return self._group_lines.get(group)

    def _compose(self, path: Path) -> yaml.Node | None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(Problem(f"cannot be read: {error}", path))
            return None
        if text.startswith("$ANSIBLE_VAULT"):
            return None
        try:
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            self.problems.append(_not_yaml(path, error))
            return None

    def _groups(self, path: Path, node: yaml.Node | None) -> None:
        for key, value in self._entries(path, node, "The file, and what is under children,"):
            group = str(key.value)
            self._group_lines.setdefault(group, Place(path, key.start_mark.line + 1, None, value))
            for part, content in self._entries(path, value, f"The group {group}"):
                if part.value == "vars":
                    self._variables(("group", group), path, content)
                elif part.value == "children":
                    self._groups(path, content)
                elif part.value == "hosts":
                    for host, variables in self._entries(path, content, f"hosts of {group}"):
                        self._variables(("host", str(host.value)), path, variables)
                else:
                    hint = "A group has hosts, vars and children."
                    self._add(f"{group} has no key {part.value}.", path, part, hint)

    def _variables(self, scope: tuple[str, str], path: Path, node: yaml.Node | None) -> None:
        seen: dict[str, int] = {}
        for key, value in self._entries(path, node, "Variables"):
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                self._add(f"{name} is set twice; it stands in line {seen[name]} too.", path, key)
            seen[name] = line
            self._places.setdefault(scope, {})[name] = Place(path, line, _shown(value), value)

    def _entries(self, path: Path, node: yaml.Node | None, what: str) -> list[tuple[yaml.Node, yaml.Node]]:
        """Keys and values of a mapping. Nothing at all may stand for an empty one; anything else is a problem."""
        if isinstance(node, yaml.MappingNode):
            return list(node.value)
        if node is not None and node.tag != "tag:yaml.org,2002:null":
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            self._add(f"{what} must be a mapping (name: value); this is {kind}.", path, node)
        return []

    def _add(self, message: str, path: Path, node: yaml.Node, hint: str | None = None) -> None:
        self.problems.append(Problem(message, path, node.start_mark.line + 1, hint))


def _hosts_files(source: Path) -> list[Path]:
    files = [source] if source.is_file() else [path for path in sorted(source.iterdir()) if path.is_file()]
    return [path for path in files if path.suffix in HOSTS_SUFFIXES and path.name != "stack.lock.yml"]


def _variable_files(base: Path) -> Iterator[tuple[str, Path]]:
    """`group_vars/NAME.yml` and every file below `group_vars/NAME/`, each with its NAME, in the order of precedence."""
    for path in sorted(base.iterdir()) if base.is_dir() else []:
        if path.is_dir():
            yield from ((path.name, inner) for inner in sorted(path.rglob("*")) if _is_variables(inner))
        elif _is_variables(path):
            yield (path.stem if path.suffix else path.name), path


def _is_variables(path: Path) -> bool:
    return (
        path.is_file()
        and path.suffix in VARIABLES_SUFFIXES
        and not path.name.startswith(".")
        and not path.name.endswith("~")
    )


def _covers(written: str, host: str) -> bool:
    """Whether a range of a hosts file, such as `gpu-[01:16]`, may mean a host."""
    parts = re.split(r"\[[^\]]*:[^\]]*\]", written)
    return len(parts) > 1 and re.fullmatch("[0-9A-Za-z]+".join(map(re.escape, parts)), host) is not None


def _entry(node: yaml.Node, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and name.isdigit() and int(name) < len(node.value):
        return node.value[int(name)], node.value[int(name)]
    entries = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((key, value) for key, value in entries if str(key.value) == name), None)


def _child(node: yaml.Node, name: str) -> yaml.Node | None:
    found = _entry(node, name)
    return found[1] if found else None


def _shown(node: yaml.Node) -> str | None:
    if not isinstance(node, yaml.ScalarNode) or node.tag == "!vault" or len(node.value) > SHOWN_LENGTH:
        return None
    return str(node.value)


def _not_yaml(path: Path, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    what = " ".join(part for part in (error.context, error.problem) if part)
    column = f" (column {mark.column + 1})" if mark else ""
    return Problem(f"is not YAML{column}: {what}.", path, mark.line + 1 if mark else None)
