"""What was asked for on the command line: the one form in which `bootstrap` and `resume` hand it on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """How to run. `lab`: rehearse on simulated hosts; `resumes`: the id of the earlier run that this one continues.

    `engine`: `local`, or `ray` for the controllers of the Ray cluster at `ray_address`. `canary`: of the replicas that
    serve change one. `back_to`: the id of the earlier run whose inventory this is. `reboots`: the only hosts that may
    be rebooted, as a plan named them; None: any.
    """

    limit: str | None = None
    stages: tuple[str, ...] = ()
    check: bool = False
    full: bool = False
    forks: int | None = None
    verbose: int = 0
    as_json: bool = False
    diff: bool = False
    lab: bool = False
    resumes: str | None = None
    engine: str = "local"
    ray_address: str | None = None
    canary: bool = False
    back_to: str | None = None
    reboots: tuple[str, ...] | None = None
