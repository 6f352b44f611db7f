"""What each stage of each host depends on, as hashes: a stage whose inputs changed since its receipt does not stand.

What a stage depends on is read off the roles' own files: a variable whose name occurs in any file that the stage can
draw on counts. That is often more than it uses, and never less; the price of more is a visit that finds nothing to do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import yaml

from provision.content import content_root, parsed
from provision.converge.scrub import CREDENTIALS
from provision.converge.stages import STAGES
from provision.drift import verifier_text
from provision.inventory import Fleet, Host
from provision.inventory.ansible_api import Unresolved
from provision.inventory.schema import Schema, load_schema
from provision.serving.endpoint import told_to_gateways
from provision.stack import Stack
from provision.weights.chain import chains

Inputs = Mapping[str, Mapping[str, Mapping[str, str]]]  # host → stage → name → hash

WORD = re.compile(r"[A-Za-z_]\w*")
STACK = "stack."
CHAINED = ("transfer",)  # stages that depend on which hosts of the whole fleet hold the same model
CODE = {"code", "verifier"}  # inputs that are no variables, but parts of provision itself
LARGEST_FILE = 1 << 20  # bytes; a file that a variable names and a role reads on the controller is a key or certificate


def inputs_of(fleet: Fleet) -> Inputs:
    """The hash of every input, by host, stage and name; `name@host` is a variable of another host of the replica."""
    draws = {stage: _draws(stage) for stage in STAGES}
    hashing = _Hashing(fleet, _schema())
    return {
        host.name: {stage: dict(hashing.of(host, draw, stage)) for stage, draw in draws.items()}
        for host in fleet.managed
    }


@dataclass(frozen=True)
class _Draw:
    """What a stage can draw on: words of its roles, versions of the stack; and whether it looks at other hosts."""

    words: frozenset[str]
    versions: frozenset[str]
    looks_around: bool


class _Hashing:
    def __init__(self, fleet: Fleet, schema: Schema) -> None:
        self.fleet, self.schema = fleet, schema
        self.code = _code()
        self.chains = chains(fleet)
        self._known: dict[tuple[str, str], str] = {}

    def of(self, host: Host, draw: _Draw, stage: str) -> Iterator[tuple[str, str]]:
        """The inputs of one stage on one host."""
        yield "code", self.code
        if stage in CHAINED:
            yield "chain", _digest(self.chains.get(str(host.variables.get("weights_repo")), []))
        if "provision_verifier_file" in draw.words:
            yield "verifier", _digest(verifier_text())
        for name, version in vars(self.fleet.stack).items():
            if version is not None and name in draw.versions:
                yield f"{STACK}{name}", _digest(str(version))
        yield from self._variables(host, draw.words, "")
        if "provision_replicas" in draw.words:
            yield from self._replicas(draw.words)
        if draw.looks_around:
            replica = self.fleet.replica_of(host.name)
            mates = [] if replica is None else list(replica.hosts)
            yield "replica", _digest([mate.name for mate in mates])
            for mate in mates:
                if mate.name != host.name:
                    yield from self._variables(mate, draw.words, f"@{mate.name}")

    def _replicas(self, words: frozenset[str]) -> Iterator[tuple[str, str]]:
        """What a gateway is told of the replicas, and the keys that it shows them."""
        yield "replicas", _digest(told_to_gateways(self.fleet))
        for replica in self.fleet.replicas:
            yield from self._variables(replica.head, words & {"vllm_api_key"}, f"@{replica.head.name}")

    def _variables(self, host: Host, words: frozenset[str], suffix: str) -> Iterator[tuple[str, str]]:
        for name in sorted(host.variables.keys() & words):
            if (host.name, name) not in self._known:
                self._known[host.name, name] = self._variable(name, host.variables[name])
            yield name + suffix, self._known[host.name, name]

    def _variable(self, name: str, value: object) -> str:
        if isinstance(value, Unresolved):  # its value is known on the hosts alone: any change of any file may be one
            return _digest([hashlib.sha256(path.read_bytes()).hexdigest() for path in _files(self.fleet.sources)])
        spec = self.schema.specs.get(name)
        if (spec and spec.secret) or CREDENTIALS.search(json.dumps(value, default=str)):
            return _slow_digest(name, value)
        return _digest([value, *_contents(value)])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _slow_digest(name: str, value: object) -> str:
    """Of a secret: receipts and plans keep the hash, and nobody shall find a weak secret by trying."""
    text = json.dumps(value, sort_keys=True, default=str).encode()
    return hashlib.scrypt(text, salt=name.encode(), n=1 << 14, r=8, p=1, dklen=8).hex()


def _contents(value: object) -> Iterator[str]:
    """The hashes of the controller's files that a value names: a role may read them."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _contents(item)
    elif isinstance(value, Mapping):
        yield from _contents(list(value.values()))
    elif isinstance(value, str) and "/" in value:
        try:
            path = Path(value).expanduser()
            if path.is_file() and path.stat().st_size <= LARGEST_FILE:
                yield hashlib.sha256(path.read_bytes()).hexdigest()
        except (OSError, RuntimeError, ValueError):
            return


def _files(sources: Iterable[Path]) -> list[Path]:
    return sorted(
        path for source in sources for path in ([source] if source.is_file() else source.rglob("*")) if path.is_file()
    )


@cache
def _schema() -> Schema:
    return load_schema(content_root())


@cache
def _code() -> str:
    """One hash of all that decides what a run does on a host, documentation left out."""
    digest = hashlib.sha256()
    root = content_root()
    for path in _files([root / "roles", root / "playbooks"]):
        if path.suffix not in (".pyc", ".md"):
            digest.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


@cache
def _draws(stage: str) -> _Draw:
    """Follow the names from the stage's role: to what defines a variable, and to all of a role that is included."""
    texts, seen, waiting = [""], set[str](), [stage]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        is_role = (content_root() / "roles" / name).is_dir()
        texts.append(_text(name) if is_role else _definitions()[name])
        words = set(WORD.findall(texts[-1]))
        waiting += sorted(words & _definitions().keys())
        waiting += sorted({_kept()[word] for word in words & _kept().keys()} | (_included(name) if is_role else set()))
    text = "\n".join(texts)
    looks_around = bool(re.search(r"\b(hostvars|groups|ansible_play\w*)\b", text))
    return _Draw(frozenset(WORD.findall(text)), _versions(text), looks_around)


@cache
def _definitions() -> dict[str, str]:
    """What each input and constant of a role is made of, as text."""
    found: dict[str, str] = {}
    for path in sorted((content_root() / "roles").glob("*/*/main.yml")):
        if path.parent.name in ("defaults", "vars"):
            for name, value in (parsed(path.read_text(encoding="utf-8")) or {}).items():
                found[name] = found.get(name, "") + "\n" + yaml.safe_dump(value, allow_unicode=True, width=10_000)
    return found


@cache
def _kept() -> dict[str, str]:
    """Which role's tasks keep a name for later ones: who uses it draws on all of that role."""
    found = {}
    for role in sorted((content_root() / "roles").iterdir()):
        for path in role.glob("tasks/*.yml"):
            names = re.findall(rf"\b(__{role.name}\w*)\b", path.read_text(encoding="utf-8"))
            found.update({name: role.name for name in names if name not in _definitions()})
    return found


def _versions(text: str) -> frozenset[str]:
    """The versions that a text names as `stack.NAME`; all of them if it has another use for the word."""
    named = frozenset(re.findall(r"\bstack\.(\w+)", text))
    everything = frozenset(field.name for field in fields(Stack)) - {"path"}
    expressions = " ".join(re.findall(r"\{\{.*?\}\}|\{%.*?%\}|\b(?:when|that|until):[^\n]*", text, re.DOTALL))
    return everything if re.search(r"\bstack\b(?!\.\w)", expressions) else named & everything


def _included(role: str) -> set[str]:
    """The roles that a role includes or reads files of: those named in a task that includes one, or by role_path."""
    names = {path.name for path in (content_root() / "roles").iterdir()}
    found = set()
    for path in (content_root() / "roles" / role).rglob("*.yml"):
        text = path.read_text(encoding="utf-8")
        said = [line for line in text.splitlines() if "role_path" in line]
        for task in (parsed(text) or []) if path.parent.name == "tasks" else []:
            shown = json.dumps({key: value for key, value in task.items() if key != "name"})
            said += [shown] if re.search("include_role|import_role", shown) else []
        found |= names & set(WORD.findall("\n".join(said)))
    return found - {role}


def _text(role: str) -> str:
    """All of a role but its documentation: what its tasks, templates, files and interface say."""
    folder = content_root() / "roles" / role
    parts = ("defaults", "vars", "tasks", "templates", "files")
    paths = [path for part in parts if (folder / part).is_dir() for path in _files([folder / part])]
    paths += [content_root() / "playbooks/stages" / f"{role}.yml"]
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file())
