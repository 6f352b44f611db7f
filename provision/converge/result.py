"""What a run came to, host by host."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from provision import exits
from provision.converge.standing import Visit

INTERRUPT, CANARY = "the interrupt", "the canary"  # why a host was spared, where no other host is to blame


@dataclass(frozen=True)
class Difference:
    """One resource before and after. Either may be empty, or hold many lines."""

    resource: str
    before: str
    after: str


@dataclass(frozen=True)
class Change:
    """One task that changed a host, or in check mode would: as sentences of the module, and as differences.

    `effects` says of each action what it takes besides: `none`, `reload`, `restart`, `gpu_reset` or `reboot`.
    """

    stage: str
    task: str
    actions: tuple[str, ...]
    differences: tuple[Difference, ...]
    effects: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """Why a host could not be brought further. `unreachable`: it did not answer, as opposed to refusing."""

    stage: str
    task: str
    message: str
    hint: str | None = None
    unreachable: bool = False


@dataclass(frozen=True)
class Answer:
    """The model on this host generated so many tokens, in so many milliseconds."""

    tokens: int
    milliseconds: int


@dataclass
class HostResult:
    """One host of a run.

    `visited` are the stages that did not stand, and why. `held_back` names those left out because of `because`, a host
    of the same replica; `spared` the host whose failure, in an earlier wave, kept the run from this one, or
    INTERRUPT or CANARY. `waits` says why it waits for a reboot that the plan which the run applies does not name.
    `stays_out` names the run that drained its replica, which this run could not admit, since not all of it stands.
    """

    name: str
    visited: tuple[Visit, ...] = ()
    spared: str | None = None
    changes: list[Change] = field(default_factory=list)
    failure: Failure | None = None
    held_back: tuple[str, ...] = ()
    because: str | None = None
    answer: Answer | None = None
    waits: tuple[str, ...] = ()
    stays_out: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`unreachable`, `failed`, `held_back`, `changed` or `ok`: the first that applies."""
        if self.failure:
            return "unreachable" if self.failure.unreachable else "failed"
        if self.held_back or self.spared:
            return "held_back"
        return "changed" if self.changes else "ok"


@dataclass
class Result:
    """A whole run.

    `error` is a failure of the run itself, not of any host; `running` what an interrupt cut short; `trouble` why its
    journal is not whole; `canary` the replica that was changed alone, while others wait for the same.
    """

    run: str
    directory: Path
    log: Path
    check: bool
    hosts: dict[str, HostResult]
    seconds: float = 0.0
    interrupted: bool = False
    running: dict[str, tuple[str, str]] = field(default_factory=dict)
    error: str | None = None
    trouble: str | None = None
    canary: str | None = None

    @property
    def exit_code(self) -> int:
        """As documented: interrupted, then failed, then unreachable, then changes pending.

        Pending in check mode, after a canary, and where a reboot waits for another plan.
        """
        statuses = {host.status for host in self.hosts.values()}
        if self.interrupted:
            return exits.INTERRUPTED
        if self.error or "failed" in statuses:
            return exits.FAILED
        if "unreachable" in statuses:
            return exits.UNREACHABLE
        pending = self.canary or any(host.waits or (self.check and host.changes) for host in self.hosts.values())
        return exits.PENDING if pending else exits.OK
