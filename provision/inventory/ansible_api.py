"""The one place that imports ansible-core: it reads an inventory exactly as a run will, and resolves its templates.

ansible-core promises no stable Python interface, so what is used here is kept small: the loader, the inventory, the
variables and the templar, which are the same from 2.19 to 2.21.
"""

from __future__ import annotations

import locale
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# A lock file lies beside hosts.yml; Ansible would otherwise read it for hosts. Must be set before the import.
IGNORED = r"stack\.lock\.yml$"
os.environ.setdefault("ANSIBLE_INVENTORY_IGNORE_REGEX", IGNORED)
# Ansible ends the process on import where the locale is not UTF-8, as on a machine set up for LANG=C.
try:
    locale.setlocale(locale.LC_ALL, "")
except locale.Error:
    os.environ["LC_ALL"] = "C.UTF-8"
if (locale.getlocale()[1] or "").lower() not in {"utf-8", "utf8"}:
    os.environ["LC_ALL"] = "C.UTF-8"

from ansible import constants  # noqa: E402
from ansible.cli import CLI  # noqa: E402
from ansible.errors import AnsibleError, AnsibleUndefinedVariable  # noqa: E402
from ansible.inventory.manager import InventoryManager  # noqa: E402
from ansible.parsing.dataloader import DataLoader  # noqa: E402
from ansible.template import Templar, trust_as_template  # noqa: E402
from ansible.utils.display import Display  # noqa: E402
from ansible.vars.manager import VariableManager  # noqa: E402

MAGIC_NAMES = (  # what Ansible itself puts among a host's variables
    "ansible_check_mode ansible_config_file ansible_diff_mode ansible_facts ansible_forks ansible_inventory_sources "
    "ansible_limit ansible_local ansible_play_batch ansible_play_hosts ansible_play_hosts_all ansible_play_name "
    "ansible_playbook_python ansible_run_tags ansible_skip_tags ansible_verbosity ansible_version environment "
    "group_names groups hostvars inventory_dir inventory_file inventory_hostname inventory_hostname_short omit "
    "play_hosts playbook_dir role_name role_names role_path vars"
)
MAGIC = frozenset(MAGIC_NAMES.split())


# Files of an inventory that Ansible does not read, by how their names end.
IGNORED_FILES = tuple(constants.INVENTORY_IGNORE_EXTS)


class SourceError(Exception):
    """Ansible could not read a source; the message is Ansible's own first sentence."""


@dataclass(frozen=True)
class Unresolved:
    """A value whose template cannot be resolved before the run; `missing` if because something is not defined."""

    reason: str
    missing: bool


@dataclass(frozen=True)
class RawHost:
    """One host as Ansible sees it: variables resolved to plain Python, groups from the closest outwards.

    `defaults` holds roles' defaults as they come out on this host: of those asked for, the ones that resolve.
    """

    name: str
    variables: dict[str, object]
    defaults: dict[str, object]
    groups: tuple[str, ...]


@dataclass(frozen=True)
class RawInventory:
    """All hosts, each group's hosts, and each group's child groups, in the order of the files."""

    hosts: dict[str, RawHost]
    groups: dict[str, tuple[str, ...]]
    children: dict[str, tuple[str, ...]]


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except AnsibleError as error:
        raise SourceError(_first_sentence(error)) from error


@_told()
def read(sources: Iterable[Path], context: Mapping[str, object], asked: Iterable[str] = ()) -> RawInventory:
    """Read the sources as one inventory.

    `context` holds what the roles define, for templates to use (lowest precedence); `asked` the defaults to resolve.
    """
    manager, loader = _manager(sources)
    variables = VariableManager(loader=loader, inventory=manager)
    trusted = {name: _trusted(value) for name, value in context.items()}
    hosts = {}
    for host in manager.get_hosts():
        own = variables.get_vars(host=host, include_hostvars=True)
        templar = Templar(loader=loader, variables={**trusted, **own})
        hosts[str(host.name)] = RawHost(
            name=str(host.name),
            variables={str(name): _template(templar, value) for name, value in own.items() if name not in MAGIC},
            defaults=_defaults(templar, {name: trusted[name] for name in asked if name in trusted}),
            groups=tuple(str(group.name) for group in sorted(host.get_groups(), key=lambda g: (-g.depth, g.name))),
        )
    return RawInventory(
        hosts=hosts,
        groups={str(n): tuple(str(h.name) for h in group.get_hosts()) for n, group in manager.groups.items()},
        children={str(n): tuple(str(c.name) for c in group.child_groups) for n, group in manager.groups.items()},
    )


@_told()
def raw_values(sources: Iterable[Path], name: str) -> list[object]:
    """What each host has for one variable, unresolved: enough for a plain switch, before anything is validated."""
    manager, loader = _manager(sources)
    variables = VariableManager(loader=loader, inventory=manager)
    return [_plain(variables.get_vars(host=host, include_hostvars=False).get(name)) for host in manager.get_hosts()]


@_told()
def matching(sources: Iterable[Path], pattern: str) -> list[str]:
    """The hosts that Ansible's `--limit` would mean by a pattern."""
    manager, _ = _manager(sources)
    return [str(host.name) for host in manager.get_hosts(pattern)]


def connection_defaults() -> tuple[str | None, str | None, str]:
    """Remote user, private key file and SSH arguments that the user's ansible.cfg or environment sets."""
    args = os.environ.get("ANSIBLE_SSH_COMMON_ARGS", "") + " " + os.environ.get("ANSIBLE_SSH_EXTRA_ARGS", "")
    return constants.DEFAULT_REMOTE_USER, constants.DEFAULT_PRIVATE_KEY_FILE, args


def _manager(sources: Iterable[Path]) -> tuple[Any, Any]:
    _silence()
    loader = DataLoader()
    constants.INVENTORY_ANY_UNPARSED_IS_FAILED = True
    loader.set_vault_secrets(_vault_secrets())
    return InventoryManager(loader=loader, sources=[str(path) for path in sources]), loader


@cache
def _vault_secrets() -> object:
    """Vault passwords from the places that ansible.cfg or the environment names; asked for once in a process."""
    return CLI.setup_vault_secrets(
        DataLoader(), vault_ids=list(constants.DEFAULT_VAULT_IDENTITY_LIST), auto_prompt=False
    )


def password_files() -> frozenset[Path]:
    """The files that hold the vault's passwords, as ansible.cfg or the environment names them."""
    named = [constants.DEFAULT_VAULT_PASSWORD_FILE, *constants.DEFAULT_VAULT_IDENTITY_LIST]
    return frozenset(Path(str(name).rpartition("@")[2]).expanduser().resolve() for name in named if name)


def _silence() -> None:
    """Ansible prints warnings as it reads; what matters of them is said by our own checks, with file and line."""
    display = Display()
    for method in ("warning", "deprecated", "display", "error"):
        setattr(display, method, lambda *_args, **_kwargs: None)


def _defaults(templar: Templar, values: Mapping[str, object]) -> dict[str, object]:
    found = {name: _template(templar, value) for name, value in values.items()}
    return {name: value for name, value in found.items() if not isinstance(value, Unresolved)}


def _trusted(value: object) -> object:
    """Values of the roles' own files, allowed to be templates."""
    if isinstance(value, Mapping):
        return {key: _trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


def _template(templar: Templar, value: object) -> object:
    try:
        return _plain(templar.template(value))
    except AnsibleUndefinedVariable as error:
        return Unresolved(_first_sentence(error), missing=True)
    except AnsibleError as error:
        if "decrypt" in str(error).lower():
            raise  # one word on the vault's password, not one on each value that is in it
        return Unresolved(_first_sentence(error), missing=False)


def _plain(value: object) -> object:
    """Ansible marks what it loads with where it came from, in subclasses of str, int, dict; others want plain types."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _first_sentence(error: AnsibleError) -> str:
    return str(getattr(error, "message", None) or error).strip().split("\n")[0]
