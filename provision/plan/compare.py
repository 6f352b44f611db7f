"""What moved between a plan and now, and between a plan and what was done: each difference as one line for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from provision import __version__
from provision.converge import HostResult
from provision.converge.inputs import CODE, Inputs
from provision.inventory import Fleet
from provision.inventory.places import Places
from provision.plan.changes import steps
from provision.plan.model import Plan, PlannedChange, PlannedVisit, Wave

SHOWN = 72  # characters of a value that are told
Key = tuple[str, str, str]


def moved_inputs(plan: Plan, fleet: Fleet, hosts: Sequence[str], inputs: Inputs) -> list[str]:
    """Hosts, variables, versions and roles that are not what they were when the plan was made."""
    found = [f"{host} was not there when the plan was made" for host in hosts if host not in plan.hosts]
    found += [f"{host} is not there any more" for host in plan.hosts if host not in hosts]
    places = Places(fleet)
    for host in (host for host in plan.hosts if host in hosts):
        names = {
            name
            for stage, before in plan.inputs.get(host, {}).items()
            for name in {**before, **inputs[host][stage]}
            if before.get(name) != inputs[host][stage].get(name)
        }
        found += [_input(plan, places, host, name) for name in sorted(names)]
    return list(dict.fromkeys(found))


def _input(plan: Plan, places: Places, host: str, name: str) -> str:
    if name in CODE:
        return f"the roles are not those of the plan (provision {plan.version} made it; this is {__version__})"
    spot = places.of(name, host)
    where = f"; it stands at {places.shown(spot[0])}:{spot[1]}" if spot else "; no file of the inventory sets it now"
    return f"{host}: {name} is not what it was{where}"


def moved_visits(plan: Plan, visits: Mapping[str, Sequence[PlannedVisit]]) -> list[str]:
    """Stages that would be visited now and not then, the other way round, or for another reason."""
    found = []
    for host in plan.hosts:
        then = {visit.stage: visit for visit in plan.visits.get(host, ())}
        now = {visit.stage: visit for visit in visits.get(host, ())}
        for stage in dict.fromkeys([*then, *now]):
            before, after = then.get(stage), now.get(stage)
            if after is None:
                found.append(f"{host}: {stage} stands now; the plan visits it")
            elif before is None:
                found.append(f"{host}: {stage} stood, and would be visited now: {after.why}")
            elif before != after:
                found.append(f"{host}: {stage} would be visited for another reason: {after.why} (then: {before.why})")
    return found


def moved_changes(plan: Plan, now: Plan) -> list[str]:
    """Changes that a prediction of now has and the plan has not, the other way round, or with other values."""
    found = []
    for host in plan.hosts:
        then, new = list(plan.changes.get(host, ())), list(now.changes.get(host, ()))
        gone = [change for change in then if _exact(change) not in {_exact(other) for other in new}]
        came = [change for change in new if _exact(change) not in {_exact(other) for other in then}]
        for change in came:
            twin = next((old for old in gone if _name(old) == _name(change)), None)
            if twin:
                gone.remove(twin)
            found.append(f"{host}: {change.stage}: {_told(change, twin)}")
        found += [f"{host}: {old.stage}: {old.resource or old.task}: no longer to do: {old.action}" for old in gone]
    return found


def moved_waves(plan: Plan, now: Plan) -> list[str]:
    """Replicas that would leave rotation in another order than planned, or leave less behind."""
    found = []
    if [(wave.hosts, wave.out) for wave in plan.waves] != [(wave.hosts, wave.out) for wave in now.waves]:
        found.append(f"the waves are other ones: {_waves(now.waves)} (then: {_waves(plan.waves)})")
    if any(wave.out for wave in now.waves):
        lost = [name for name in plan.fewest.replicas if name not in now.now.replicas]
        found += [f"{name} does not serve now; the plan counts on it" for name in lost]
    return found


def deviations(plan: Plan, hosts: Iterable[HostResult]) -> list[str]:
    """What was done and not planned, and what was planned and not done, on hosts that went through to the end."""
    found = []
    for host in hosts:
        planned = Counter((change.stage, change.action, change.effect) for change in plan.changes.get(host.name, ()))
        done = Counter((step.stage, step.action, step.effect) for step in steps(host.changes))
        found += list(_lines(host.name, done - planned, "was done, and is not in the plan"))
        if host.status in ("ok", "changed"):
            found += list(_lines(host.name, planned - done, "is in the plan, and was not done"))
    return found


def _lines(host: str, keys: Counter[Key], what: str) -> Iterator[str]:
    for (stage, action, effect), _ in keys.items():
        yield f"{host}: {stage}: {action} (effect {effect}) {what}"


def _exact(change: PlannedChange) -> tuple[str, ...]:
    return (*_name(change), change.action, change.before, change.after, change.effect)


def _name(change: PlannedChange) -> tuple[str, ...]:
    return (change.stage, change.task, change.resource)


def _told(change: PlannedChange, twin: PlannedChange | None) -> str:
    name = change.resource or change.task
    if twin is None:
        return f"{name}: not in the plan: {change.action}"
    for what in ("before", "after", "effect"):
        old, new = getattr(twin, what), getattr(change, what)
        if old != new:
            word = {"before": "is", "after": "would become", "effect": "has the effect"}[what]
            return f"{name} {word} {_short(new)} (in the plan: {_short(old)})"
    return f"{name}: now: {change.action} (in the plan: {twin.action})"


def _short(value: str) -> str:
    line = " ".join(value.split()) or "absent"
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def _waves(waves: Sequence[Wave]) -> str:
    said = [f"{', '.join(wave.out) or 'none'} out while {', '.join(wave.hosts)} change" for wave in waves]
    return "; ".join(said) or "none"
