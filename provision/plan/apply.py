"""Doing exactly a plan: everything is looked at again first, and any difference is a refusal that names it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provision import exits
from provision.converge import Result, bootstrap
from provision.converge.inputs import inputs_of
from provision.converge.journal import Event
from provision.converge.stages import chosen_stages
from provision.converge.standing import stand
from provision.errors import PlanMovedError
from provision.inventory import Fleet, select
from provision.plan.compare import deviations, moved_changes, moved_inputs, moved_visits, moved_waves
from provision.plan.make import Planning, make_plan, visits_of
from provision.plan.model import Options, Plan
from provision.ssh.trouble import Trouble

TOLD = 12  # differences that a refusal names


@dataclass(frozen=True)
class Applied:
    """What came of a plan. `result` is None where there was nothing left to do; `deviations` should be empty."""

    result: Result | None
    deviations: tuple[str, ...] = ()
    hosts: int = 0


def apply(
    plan: Plan,
    fleet: Fleet,
    file: Path,
    *,
    forks: int | None = None,
    verbosity: int = 0,
    on_check: Callable[[Event], None] = lambda _event: None,
    on_event: Callable[[Event], None] = lambda _event: None,
    on_text: Callable[[str], None] = lambda _text: None,
) -> Applied:
    """Bring the fleet to what the plan says, by the changes that it names and no others.

    `on_check` gets the events of the prediction that comes first, `on_event` those of the run itself. Raises
    PlanMovedError where the inventory, the hosts or what a run would do differ from the plan.
    """
    if not _is_to_be_done(plan, fleet, file, forks, on_check):
        return Applied(None, hosts=len(plan.hosts))
    result = bootstrap(
        fleet,
        limit=plan.options.limit,
        stages=chosen_stages(plan.options.stages),
        full=plan.options.full,
        forks=forks,
        verbosity=verbosity,
        reboots=plan.rebooted,
        approve=lambda: _approve(plan, fleet, file),
        on_event=on_event,
        on_text=on_text,
    )
    return Applied(result, tuple(deviations(plan, result.hosts.values())), len(plan.hosts))


def _is_to_be_done(plan: Plan, fleet: Fleet, file: Path, forks: int | None, on_check: Callable[[Event], None]) -> bool:
    """Look at everything again; false if all of the plan stands already."""
    options = plan.options
    hosts, stages = select(fleet, options.limit), chosen_stages(options.stages)
    _refuse(file, plan, moved_inputs(plan, fleet, [host.name for host in hosts], inputs_of(fleet)))
    standing = stand(fleet, hosts, stages, full=options.full)
    _refuse_trouble(file, {name: told.trouble for name, told in standing.receipts.items() if told.trouble})
    if not standing.visits:
        return False
    _refuse(file, plan, moved_visits(plan, visits_of(fleet, standing)))
    now = make_plan(fleet, options, forks=forks, standing=standing, on_event=on_check)
    _refuse(file, plan, _failures(now))
    if options.full and plan.changes and not now.plan.changes:  # every stage was looked at, and all of them stand
        return False
    _refuse(file, plan, [*moved_changes(plan, now.plan), *moved_waves(plan, now.plan)])
    return True


def _approve(plan: Plan, fleet: Fleet, file: Path) -> None:
    """The last look, when no other run can change the hosts any more: what another one did until then is seen here."""
    standing = stand(
        fleet, select(fleet, plan.options.limit), chosen_stages(plan.options.stages), full=plan.options.full
    )
    _refuse(file, plan, moved_visits(plan, visits_of(fleet, standing)))


def _failures(planning: Planning) -> list[str]:
    prediction = planning.prediction
    if prediction is None or planning.whole:
        return []
    if prediction.interrupted:
        raise KeyboardInterrupt
    failed = [f"{name}: {host.failure.message}" for name, host in prediction.hosts.items() if host.failure]
    return failed or [prediction.error or "what it would do now cannot be foretold"]


def _refuse_trouble(file: Path, troubles: Mapping[str, Trouble]) -> None:
    if not troubles:
        return
    told = "\n".join(f"  {name}: {trouble.message}\n    {trouble.hint}".rstrip() for name, trouble in troubles.items())
    fine = all(trouble.unreachable for trouble in troubles.values())
    message = f"{file} cannot be applied, since hosts of it cannot be used; nothing was done.\n{told}"
    raise PlanMovedError(message, exits.UNREACHABLE if fine else exits.FAILED)


def _refuse(file: Path, plan: Plan, differences: Sequence[str]) -> None:
    if not differences:
        return
    more = [f"and {len(differences) - TOLD} more"] if len(differences) > TOLD else []
    told = "\n".join(f"  {line}" for line in [*differences[:TOLD], *more])
    again = shlex.join(["provision", "plan", plan.inventory, *_words(plan.options), "--out", str(file)])
    raise PlanMovedError(f"{file} no longer holds; nothing was done.\n{told}\n  Plan again:  {again}")


def _words(options: Options) -> list[str]:
    words = ["--limit", options.limit] if options.limit else []
    words += ["--stage", ",".join(options.stages)] if options.stages else []
    return [*words, *(["--full"] if options.full else []), *(["--lab"] if options.lab else [])]
