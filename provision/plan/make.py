"""Making a plan: what stands, what would be visited, and what a run in check mode foretells of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from provision import __version__, exits
from provision.converge import Result, bootstrap
from provision.converge.estimate import estimate
from provision.converge.journal import Event, now
from provision.converge.scrub import Scrubber, secret_values
from provision.converge.stages import chosen_stages
from provision.converge.standing import Standing, stand, touched
from provision.inventory import Fleet, Host, select
from provision.plan.blast import Rotation, others
from provision.plan.changes import steps
from provision.plan.model import DISRUPTIVE, FORMAT, KIND, Options, Plan, PlannedChange, PlannedVisit
from provision.plan.reasons import Reasons
from provision.ssh.trouble import Trouble

STOPS = {"failed": exits.FAILED, "unreachable": exits.UNREACHABLE}


@dataclass(frozen=True)
class Planning:
    """A plan, and what is not whole about it: hosts in trouble, and a prediction that failed on some host."""

    plan: Plan
    standing: Standing
    prediction: Result | None

    @property
    def troubles(self) -> dict[str, Trouble]:
        """Hosts that could not be asked."""
        return {name: told.trouble for name, told in self.standing.receipts.items() if told.trouble}

    @property
    def whole(self) -> bool:
        """Whether every host was asked, and everything foretold."""
        return self.exit_code in (exits.OK, exits.PENDING)

    @property
    def exit_code(self) -> int:
        """As of a run: interrupted, then failed, then unreachable, then changes pending."""
        codes = {exits.UNREACHABLE if trouble.unreachable else exits.FAILED for trouble in self.troubles.values()}
        codes |= {self.prediction.exit_code} if self.prediction else set()
        order = (exits.INTERRUPTED, exits.FAILED, exits.UNREACHABLE)
        pending = exits.PENDING if self.plan.changes else exits.OK
        return next((code for code in order if code in codes), pending)


def make_plan(
    fleet: Fleet,
    options: Options,
    *,
    forks: int | None = None,
    standing: Standing | None = None,
    on_event: Callable[[Event], None] = lambda _event: None,
    on_text: Callable[[str], None] = lambda _text: None,
) -> Planning:
    """What a bootstrap with these options would do. Where everything stands, Ansible is not started.

    Raises UsageError for a limit or stage that does not exist.
    """
    hosts, stages = select(fleet, options.limit), chosen_stages(options.stages)
    standing = standing or stand(fleet, hosts, stages, full=options.full)
    prediction = None
    if standing.visits:
        prediction = bootstrap(
            fleet,
            limit=options.limit,
            stages=stages,
            check=True,
            full=options.full,
            forks=forks,
            on_event=on_event,
            on_text=on_text,
        )
    changes = dict(_changes(Reasons(fleet, standing), standing, prediction)) if prediction else {}
    return Planning(_plan(fleet, options, hosts, standing, changes), standing, prediction)


def visits_of(fleet: Fleet, standing: Standing) -> dict[str, tuple[PlannedVisit, ...]]:
    """The visits as a plan keeps them: why is in the hosts' own words, and so may hold what is secret."""
    scrub = Scrubber(secret_values(fleet))
    return {
        name: tuple(PlannedVisit(visit.stage, visit.kind, scrub.text(visit.why), visit.names) for visit in own)
        for name, own in standing.visits.items()
    }


def _changes(
    reasons: Reasons, standing: Standing, prediction: Result
) -> Iterator[tuple[str, tuple[PlannedChange, ...]]]:
    """What is foretold, by host; a stage that the run visits for reasons of its own follows from the others."""
    for name, host in prediction.hosts.items():
        visits = {visit.stage: visit for visit in standing.visits.get(name, ())}
        found = []
        for step in steps(host.changes):
            reason = reasons.of(name, visits.get(step.stage), step)
            found.append(PlannedChange(**vars(step), reason=reason))
        if found:
            yield name, tuple(found)


def _plan(
    fleet: Fleet,
    options: Options,
    hosts: tuple[Host, ...],
    standing: Standing,
    changes: Mapping[str, tuple[PlannedChange, ...]],
) -> Plan:
    stages = chosen_stages(options.stages)
    disturbs = any(change.effect in DISRUPTIVE for own in changes.values() for change in own)
    disturbs = disturbs or any(touched(fleet, standing.receipts, standing.visits))
    rotation = Rotation(fleet, {**(others(fleet, hosts) if disturbs else {}), **standing.receipts})
    path = fleet.path.resolve()
    return Plan(
        kind=KIND,
        format=FORMAT,
        made=now(),
        version=__version__,
        inventory=str(path),
        options=options,
        hosts=tuple(host.name for host in hosts),
        inputs={host.name: {stage: standing.inputs[host.name][stage] for stage in stages} for host in hosts},
        visits=visits_of(fleet, standing),
        changes=changes,
        replicas=tuple(replica.name for replica in fleet.replicas),
        unknown=rotation.unknown,
        now=rotation.capacity(),
        waves=rotation.waves(standing, changes, lambda work: estimate(path, work, lab=fleet.overlaid)),
    )
