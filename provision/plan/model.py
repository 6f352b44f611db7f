"""What a bootstrap would do, typed: what `provision plan` makes, writes and shows, and `provision apply` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KIND = "provision plan"
FORMAT = 1
EFFECTS = ("none", "reload", "restart", "gpu_reset", "reboot")  # from the mildest to the worst
DISRUPTIVE = frozenset({"restart", "gpu_reset", "reboot"})  # a replica does not serve meanwhile


@dataclass(frozen=True)
class Options:
    """What was asked for, as on the command line."""

    limit: str | None = None
    stages: tuple[str, ...] = ()
    full: bool = False
    lab: bool = False


@dataclass(frozen=True)
class Origin:
    """A variable, version or group whose value changed, and where it stands now, if in a file."""

    variable: str
    path: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Reason:
    """Why a change would be made. `kind` is that of the visit; `who` did it by hand, where the host knows."""

    kind: str
    text: str
    origins: tuple[Origin, ...] = ()
    who: str | None = None


@dataclass(frozen=True)
class PlannedChange:
    """One resource of one host: what would be done, as the sentence that is told when it is done, and why."""

    stage: str
    task: str
    action: str
    resource: str
    before: str
    after: str
    effect: str
    reason: Reason


@dataclass(frozen=True)
class PlannedVisit:
    """A stage that would run on a host, whether or not it would change anything there."""

    stage: str
    kind: str
    why: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Capacity:
    """What serves: the replicas, and the tokens that their KV caches hold; None where some replica told none."""

    replicas: tuple[str, ...]
    kv_tokens: int | None


@dataclass(frozen=True)
class Wave:
    """Hosts that are visited together: the replicas that leave rotation meanwhile, and what serves on."""

    hosts: tuple[str, ...]
    out: tuple[str, ...]
    left: Capacity
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """A whole plan. `inputs` are hashes by host, stage and name; `replicas` all of the fleet, asked or not.

    `unknown` are the replicas of which nobody knows whether they serve: outside the limit, and not answering.
    """

    kind: str
    format: int
    made: str
    version: str
    inventory: str
    options: Options
    hosts: tuple[str, ...]
    inputs: Mapping[str, Mapping[str, Mapping[str, str]]]
    visits: Mapping[str, tuple[PlannedVisit, ...]]
    changes: Mapping[str, tuple[PlannedChange, ...]]
    replicas: tuple[str, ...]
    unknown: tuple[str, ...]
    now: Capacity
    waves: tuple[Wave, ...]

    @property
    def fewest(self) -> Capacity:
        """What serves in the wave that leaves least."""
        return min((wave.left for wave in self.waves), key=lambda left: len(left.replicas), default=self.now)

    @property
    def rebooted(self) -> tuple[str, ...]:
        """Hosts that would be rebooted."""
        return tuple(host for host, changes in self.changes.items() if worst(changes) == "reboot")

    @property
    def seconds(self) -> float | None:
        """How long all of it takes; None if there is no run to estimate some wave from."""
        known = [wave.seconds for wave in self.waves if wave.seconds is not None]
        return sum(known) if known and len(known) == len(self.waves) else None


def worst(changes: tuple[PlannedChange, ...]) -> str:
    """The effect of the change that disturbs most."""
    return max((change.effect for change in changes), key=EFFECTS.index, default="none")
