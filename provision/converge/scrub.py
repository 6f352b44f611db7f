"""Keeps secret values out of what is written: a variable that is declared secret may turn up in anyone's output."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import quote, unquote

from provision.content import content_root
from provision.inventory import Fleet
from provision.inventory.schema import Spec, load_schema

MASK = "********"
SHORTEST = 6  # characters; what is shorter would mask half of every sentence, and guard nothing
# Ansible's own. `vault_*` is where an inventory keeps what it encrypts.
ANSIBLE = re.compile(r"ansible_(.*_)?(pass|password|passphrase|pin|secret)$|vault_")
CREDENTIALS = re.compile(r"://([^/\s]*)@")  # in a URL, of a proxy or a mirror: the user, or user:password
TOKEN = 16  # characters; a user of a URL that is so long is a key, and no name: masked names would tell nothing


class Scrubber:
    """Masks secrets wherever they occur, as they are or as JSON or a URL would write them."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms = {form for secret in secrets if len(secret) >= SHORTEST for form in _forms(secret)}
        longest_first = sorted(forms, key=len, reverse=True)  # one may be a part of another
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def text(self, text: str) -> str:
        """The text, masked."""
        return self._pattern.sub(MASK, text) if self._pattern else text

    def value(self, value: Any) -> Any:  # noqa: ANN401 - whatever JSON can hold
        """The same value with every string in it masked; keys are names."""
        if not self._pattern:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, (list, tuple)) else value


def is_secret(name: str) -> bool:
    """Whether a variable of that name holds what nobody may see."""
    spec = _specs().get(name)
    return bool(ANSIBLE.match(name) or (spec and spec.secret))


@cache
def _specs() -> Mapping[str, Spec]:
    return load_schema(content_root()).specs


def secret_values(fleet: Fleet) -> frozenset[str]:
    """What a fleet's hosts have in variables declared `no_log` by a role, in Ansible's passwords, and in `vault_*`.

    And the credentials of every URL, whatever variable it stands in.
    """
    specs = load_schema(content_root()).specs
    found: set[str] = set()
    for host in fleet.hosts.values():
        for name, value in {**host.defaults, **host.variables}.items():
            found.update(_strings(value) if ANSIBLE.match(name) else _secrets(value, specs.get(name)))
            found.update(secret for text in _strings(value) for secret in _credentials(text))
    names = {*fleet.hosts, *fleet.groups}  # a login may be called as a host is; masked names would tell nothing
    return frozenset(text for text in found if len(text) >= SHORTEST and text not in names)


def _secrets(value: object, spec: Spec | None) -> Iterator[str]:
    """The strings that belong to what is declared secret, the options inside of mappings and lists included."""
    if spec is None:
        return
    if spec.secret:
        yield from _strings(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _secrets(item, spec.options.get(str(name)))
    elif isinstance(value, list) and spec.options:
        for item in value:
            yield from _secrets(item, spec)


def _credentials(text: str) -> Iterator[str]:
    """What nobody may see of the URLs in a text: passwords, alone and with their users; as they stand, and decoded."""
    for login in CREDENTIALS.findall(text):
        user, _, password = login.partition(":")
        for secret in (password, login if password else "", user if len(user) >= TOKEN else ""):
            yield from (secret, unquote(secret))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
        yield str(value).strip()


def _forms(secret: str) -> Iterator[str]:
    """A secret of several lines, such as a key, may be shown with others' indentation: each line counts."""
    for text in {secret, *(line.strip() for line in secret.splitlines())}:
        if len(text) >= SHORTEST:
            yield from (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1], quote(text, safe=""))
