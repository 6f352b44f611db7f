"""From an inventory on disk to a valid Fleet, or to every problem that it has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from provision.content import content_root
from provision.errors import InventoryError, Problem, UsageError
from provision.inventory import ansible_api
from provision.inventory.ansible_api import RawHost, RawInventory
from provision.inventory.checks import DEFAULTS_ASKED, check_replicas
from provision.inventory.lines import LineIndex
from provision.inventory.model import Fleet, Host, Replica
from provision.inventory.schema import load_schema, nearest
from provision.inventory.values import check_values
from provision.stack import DEFAULT_LOCK, Stack, load_stack

SERVING = "serving"
EXAMPLE = "serving:\n    children:\n      a:\n        hosts:\n          gpu-01: {ansible_host: 10.1.4.72}"


def load_fleet(inventory: Path, extra: Sequence[Path] = (), asked: Iterable[str] = ()) -> Fleet:
    """Read and check an inventory (a directory or a file), with overlays that win over it.

    `asked` are the settings whose defaults the caller needs besides (`Host.setting`): each costs a moment per host.
    Raises InventoryError with every problem that was found, each with its file and line where one is known.
    """
    index = _index(inventory, extra)
    schema = load_schema(content_root())
    stack, problems = _stack(inventory)
    sources = tuple(path.resolve() for path in (inventory, *extra))
    try:
        raw = ansible_api.read(
            sources, {**schema.constants, **schema.defaults, "stack": _versions(stack)}, {*DEFAULTS_ASKED, *asked}
        )
    except ansible_api.SourceError as error:
        raise InventoryError([*problems, _unreadable(inventory, str(error))]) from error
    problems += _shape(inventory, raw, index)
    problems += check_values(inventory, raw, schema, index, set(raw.groups.get(SERVING, ())))
    fleet = _fleet(inventory, sources, raw, stack)
    problems += check_replicas(fleet, raw, index)
    if problems:
        raise InventoryError(_in_order(problems))
    return fleet


def simulated(inventory: Path) -> bool:
    """Whether an inventory says of itself that its hosts are simulated (`lab: true`), without checking it further."""
    _index(inventory, ())
    try:
        return any(value is True for value in ansible_api.raw_values([inventory.resolve()], "lab"))
    except ansible_api.SourceError as error:
        raise InventoryError([_unreadable(inventory, str(error))]) from error


def select(fleet: Fleet, limit: str | None) -> tuple[Host, ...]:
    """The hosts that `--limit` means, in Ansible's own sense of the word; without one all that serve or are gateways.

    Raises UsageError with the nearest name if the limit names what the inventory does not have.
    """
    if limit is None:
        return fleet.managed
    known = [*(name for name in fleet.groups if name != "ungrouped"), *fleet.hosts]
    for part in filter(None, re.split(r"[,:]", limit)):
        name = part.lstrip("!&")
        if not re.search(r"[*?\[\]~@]", name) and name not in known:
            near = nearest(name, known)
            raise UsageError(
                f"--limit: {fleet.path} has no host or group {name}."
                + (
                    f" Did you mean {near}?"
                    if near
                    else f" It has {', '.join(name for name in known if name != 'all')}."
                )
            )
    names = set(ansible_api.matching(fleet.sources, limit))
    chosen = tuple(host for host in fleet.managed if host.name in names)
    if not chosen:
        raise UsageError(f"--limit {limit} leaves no host of {fleet.path}.")
    return chosen


def _index(inventory: Path, extra: Iterable[Path]) -> LineIndex:
    if not inventory.exists():
        raise InventoryError(
            [Problem("does not exist.", inventory, hint=f"Start one with: provision init {inventory}")]
        )
    if inventory.is_dir() and not any(path.is_file() and path.name != "stack.lock.yml" for path in inventory.iterdir()):
        raise InventoryError([_no_hosts(inventory)])
    index = LineIndex()
    for source in (inventory, *extra):
        index.add(source)
    if index.problems:
        raise InventoryError(_in_order(index.problems))
    return index


def _stack(inventory: Path) -> tuple[Stack, list[Problem]]:
    try:
        return load_stack(inventory), []
    except InventoryError as error:
        return load_stack(DEFAULT_LOCK.parent / "none"), error.problems


def _versions(stack: Stack) -> dict[str, object]:
    return {name: value for name, value in vars(stack).items() if name != "path" and value is not None}


def _unreadable(inventory: Path, reason: str) -> Problem:
    if re.search("vault|decrypt", reason, re.IGNORECASE):
        return Problem(
            f"holds values that are encrypted with Ansible Vault and cannot be opened: {reason}",
            inventory,
            hint="Name the file that holds the password: export ANSIBLE_VAULT_PASSWORD_FILE=FILE",
        )
    return Problem(f"Ansible cannot read it: {reason}", inventory)


def _shape(inventory: Path, raw: RawInventory, index: LineIndex) -> list[Problem]:
    if not raw.hosts:
        return [_no_hosts(inventory)]
    if SERVING not in raw.groups:
        near = nearest(SERVING, raw.groups)
        place = index.of_group(near) if near else None
        message = "no group is called serving: its child groups are the replicas, and their hosts serve the model."
        if place:
            return [Problem(message, place.path, place.line, f"Is {near} meant to be serving?")]
        return [Problem(message, inventory, hint=f"For example:\n  {EXAMPLE}")]
    if not raw.groups[SERVING]:
        place = index.of_group(SERVING)
        return [Problem("serving has no hosts.", place.path if place else inventory, place.line if place else None)]
    return []


def _no_hosts(inventory: Path) -> Problem:
    return Problem("names no host. The least that it needs, as hosts.yml:", inventory, hint=EXAMPLE)


def _fleet(inventory: Path, sources: tuple[Path, ...], raw: RawInventory, stack: Stack) -> Fleet:
    hosts = {name: _host(host) for name, host in raw.hosts.items()}
    replicas = tuple(
        Replica(group, tuple(hosts[name] for name in raw.groups[group]))
        for group in raw.children.get(SERVING, ())
        if raw.groups[group]
    )
    lab = any(host.variables.get("lab") is True for host in hosts.values())
    return Fleet(inventory, sources, hosts, raw.groups, replicas, stack, lab)


def _host(raw: RawHost) -> Host:
    user, key, shared_args = ansible_api.connection_defaults()

    def first(*names: str) -> str | None:
        return next((str(raw.variables[name]) for name in names if raw.variables.get(name) is not None), None)

    port = first("ansible_port", "ansible_ssh_port") or ""
    key = first("ansible_ssh_private_key_file", "ansible_private_key_file") or key
    args = [first(f"ansible_ssh_{kind}args") or "" for kind in ("", "common_", "extra_")]
    return Host(
        name=raw.name,
        address=first("ansible_host", "ansible_ssh_host") or raw.name,
        user=first("ansible_user", "ansible_ssh_user") or user,
        port=int(port) if port.isdigit() else None,
        key_file=Path(key).expanduser() if key else None,
        ssh_args=tuple(shlex.split(" ".join([*args, shared_args]))),
        variables=raw.variables,
        groups=raw.groups,
        defaults=raw.defaults,
    )


def _in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Each problem once (a group's variable would show once for each of its hosts), file by file."""
    return sorted(dict.fromkeys(problems), key=lambda p: (str(p.path or ""), p.line or 0))
