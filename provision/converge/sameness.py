"""Whether another controller has what this one has: the inventory's files, the roles and playbooks, provision itself.

Only hashes travel between controllers. An inventory holds secrets, and each controller reads its own copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from provision import __version__
from provision.content import content_root

NAMED = 3  # files in a sentence
VERSION = "provision"


def manifest(sources: Sequence[Path]) -> dict[str, str]:
    """The version of provision, and the hash of every file that a run of these inventory sources depends on, by name.

    Files of the inventory have their whole path, since it must be the same on every controller; provision's own do not.
    """
    package, content = Path(__file__).resolve().parents[1], content_root()
    own = {f"{top.name}/{path.relative_to(top)}": path for top in (package, *_content(content)) for path in _files(top)}
    theirs = {
        str(path): path for source in (*_read(sources), Path("ansible.cfg").absolute()) for path in _files(source)
    }
    return {VERSION: __version__} | {name: _digest(path) for name, path in (own | theirs).items()}


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    """What of `found` is not as wanted, in one clause; empty if all is the same."""
    if wanted[VERSION] != found[VERSION]:
        return f"it runs provision {found[VERSION]}, this controller {wanted[VERSION]}"
    names = [name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]
    said = [f"{name} {_how(name in wanted, name in found)}" for name in names[:NAMED]]
    return ", ".join(said) + (f" and {len(names) - NAMED} more files" if len(names) > NAMED else "")


def _how(here: bool, there: bool) -> str:
    return "differs" if here and there else "is missing there" if here else "is only there"


def _read(sources: Iterable[Path]) -> Iterator[Path]:
    """What Ansible and the lock file's loader read of each source: beside a single file they look for more."""
    for source in sources:
        yield source
        if source.is_file():
            yield from (source.parent / name for name in ("group_vars", "host_vars", "stack.lock.yml"))


def _content(root: Path) -> tuple[Path, Path]:
    return (root / "playbooks", root / "roles")


def _files(top: Path) -> Iterator[Path]:
    """Every file that can matter: neither hidden, nor compiled by Python."""
    if top.is_file():
        yield top
    for path in sorted(top.rglob("*")):
        parts = path.relative_to(top).parts
        if path.is_file() and "__pycache__" not in parts and not any(part.startswith(".") for part in parts):
            yield path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
