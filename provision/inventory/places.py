"""Where what decides over a host stands: a variable in the inventory's files, a version in the lock file."""

from __future__ import annotations

from pathlib import Path

import yaml

from provision.inventory.lines import LineIndex
from provision.inventory.model import Fleet

STACK = "stack."
REPLICA = "replica"  # as an input of a stage: the hosts that serve together

Spot = tuple[Path, int]


class Places:
    """The places of one fleet; its files are read once."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._index = LineIndex()
        for source in fleet.sources:
            self._index.add(source)

    def of(self, variable: str, host: str) -> Spot | None:
        """The file and line that give a host a value; None where only a role's default does.

        `stack.NAME` is a version of the lock file, `NAME@HOST` a variable of another host, `replica` the host's group.
        """
        if variable.startswith(STACK):
            return _version(self._fleet.stack.path, variable.removeprefix(STACK))
        name, _, other = variable.partition("@")
        host = other or host
        if host not in self._fleet.hosts:
            return None
        place = self._index.of_host(name, host, self._fleet.hosts[host].groups)
        replica = self._fleet.replica_of(host)
        if place is None and name == REPLICA and replica:
            place = self._index.of_group(replica.name)
        return (place.path, place.line) if place else None

    def shown(self, path: Path) -> str:
        """A path as a person is told it: what lies in the inventory without the way there."""
        base = self._fleet.sources[0]
        base = base if base.is_dir() else base.parent
        return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)


def place_of(fleet: Fleet, variable: str, host: str) -> Spot | None:
    """The file and line that give one host its value of one variable; for several, make `Places` once."""
    return Places(fleet).of(variable, host)


def _version(path: Path, name: str) -> Spot | None:
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    stack = next((value for key, value in _entries(root) if key.value == "stack"), None)
    return next(((path, key.start_mark.line + 1) for key, _ in _entries(stack) if key.value == name), None)


def _entries(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return list(node.value) if isinstance(node, yaml.MappingNode) else []
