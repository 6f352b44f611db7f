"""What hosts tell of their receipts, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from provision.ssh.trouble import Trouble

# What setting a finding right does to what runs, from what nobody notices to what everybody does.
EFFECTS = ("none", "reload", "restart", "gpu_reset", "reboot")


HARMLESS = ("none", "reload")  # effects that nobody who is served notices


@dataclass(frozen=True)
class Finding:
    """One thing that differs from the receipt, in the words of the module that would set it right.

    `effect` is what setting it right takes besides: `none`, `reload`, `restart`, `gpu_reset` or `reboot`. `who` changed
    it, as a clause, where the host knows.
    """

    stage: str
    module: str
    action: str
    resource: str
    before: str
    after: str
    effect: str
    who: str | None = None


@dataclass(frozen=True)
class StageReceipt:
    """The receipt of one stage on one host, and what verifying it found."""

    stage: str
    inputs: Mapping[str, str]
    sealed: str
    findings: tuple[Finding, ...] = ()
    facts: tuple[str, ...] = ()
    error: str | None = None
    answer: Mapping[str, int] | None = None

    @property
    def stands(self) -> bool:
        """Whether the host is as the stage left it."""
        return not (self.findings or self.facts or self.error)

    def changed_inputs(self, wanted: Mapping[str, str]) -> tuple[str, ...]:
        """The names of the inputs that are not those from which the receipt was made."""
        return tuple(sorted(name for name in {**wanted, **self.inputs} if wanted.get(name) != self.inputs.get(name)))


@dataclass(frozen=True)
class Mended:
    """What one module of a stage set right on its host; with an `error`, how far it came before it could not go on."""

    stage: str
    module: str
    changes: tuple[Finding, ...]
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Busy:
    """Who changes the host right now."""

    pid: int
    command: str
    since: str


@dataclass(frozen=True)
class HostReceipts:
    """All that one host told, or the trouble that kept it from telling."""

    host: str
    trouble: Trouble | None = None
    boot_id: str = ""
    os: str = ""
    python: str = ""
    busy: Busy | None = None
    at_work: tuple[str, ...] = ()
    serving: bool = False
    kv_tokens: int | None = None
    stages: Mapping[str, StageReceipt] = field(default_factory=dict)
    mended: tuple[Mended, ...] = ()


def parsed(host: str, document: Mapping[str, Any]) -> HostReceipts:
    """A host's answer, typed. Raises KeyError, TypeError or ValueError for what is none."""
    busy = document["busy"]
    return HostReceipts(
        host=host,
        boot_id=str(document["boot_id"]),
        os=str(document["os"]),
        python=str(document["python"]),
        busy=Busy(int(busy["pid"]), str(busy["command"]), str(busy["since"])) if busy else None,
        at_work=tuple(document["at_work"]),
        serving=bool(document["serving"]),
        kv_tokens=document["kv_tokens"],
        stages={name: _stage(name, told) for name, told in document["stages"].items()},
        mended=tuple(_mended(name, told) for name, all_told in document["mended"].items() for told in all_told),
    )


def _mended(stage: str, told: Mapping[str, Any]) -> Mended:
    changes = tuple(Finding(stage=stage, **change) for change in told["changes"])
    return Mended(stage, str(told["module"]), changes, float(told["seconds"]), told["error"])


def _stage(name: str, told: Mapping[str, Any]) -> StageReceipt:
    findings = tuple(Finding(stage=name, **change) for change in told["changes"])
    return StageReceipt(
        name, dict(told["inputs"]), told["sealed"], findings, tuple(told["facts"]), told["error"], told.get("answer")
    )
