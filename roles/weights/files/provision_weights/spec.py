"""What a host is asked to hold: read from a file that the role writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

SPEC = "/etc/provision/weights.json"


@dataclass(frozen=True)
class Spec:
    """One model at one commit, where it comes from, and who else holds it."""

    repo: str
    commit: str
    directory: str
    state: str = "/var/lib/provision/weights"  # where this host tells how far it is
    source: dict[str, Any] = field(default_factory=lambda: {"kind": "huggingface"})
    exclude: tuple[str, ...] = ()
    host: str = ""  # this host's own address in the chain
    chain: tuple[
        str, ...
    ] = ()  # the addresses of all hosts that hold this model, in the order in which it is handed on
    port: int = 8082
    uplink: bool = True  # whether this host may ask the source itself
    streams: int = 8  # files that are fetched at a time
    rate: int = 0  # bytes a second that this host receives at most; 0: as many as come
    serving_rate: int = 0  # the same while a model serves here
    serving_flag: str = "/run/provision/weights-serving"  # there while a model serves
    patience: float = 3600  # seconds without a single byte, after which it is given up
    keep: tuple[str, ...] = ()  # commits that are not to be removed, since other hosts of the replica serve them
    margin: int = 1 << 30  # bytes that stay free on the disk

    @property
    def base(self) -> Path:
        """Where this model's commits lie."""
        return Path(self.directory, self.repo.replace("/", "--"))

    @property
    def place(self) -> Path:
        """Where the verified files lie once they were put in place."""
        return self.base / self.commit

    @property
    def partial(self) -> Path:
        """Where they lie until then."""
        return self.base / f"{self.commit}.partial"

    @property
    def manifest(self) -> Path:
        """The list of what belongs there, beside them."""
        return self.base / f"{self.commit}.json"

    @property
    def place_in_chain(self) -> int:
        """How many hosts come before this one."""
        return self.chain.index(self.host) if self.host in self.chain else 0


def load(path: str = SPEC, asked: dict[str, Any] | None = None) -> Spec:
    """The spec in a file, with parts of it as asked for."""
    told: dict[str, Any] = {}
    if asked is None or not {"repo", "commit", "directory"} <= asked.keys() or Path(path).exists():
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    told = {**told, **(asked or {})}
    known = {each.name for each in fields(Spec)}
    lists = {name: tuple(told[name]) for name in ("exclude", "chain", "keep") if name in told}
    return Spec(**{name: value for name, value in {**told, **lists}.items() if name in known})
