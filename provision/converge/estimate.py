"""How long stages will take, from how long they took: the median of the last runs that did the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from provision.converge.history import RunRecord, runs

LAST = 5  # runs of which the median is taken
SEARCHED = 40  # runs that are read to find them

Samples = dict[tuple[str, bool], list[float]]


@dataclass(frozen=True)
class Estimate:
    """Seconds for all stages together. `runs`: of how many earlier runs the least known of them is the median."""

    seconds: float
    runs: int


def estimate(inventory: Path, stages_changed: Mapping[str, bool], *, lab: bool | None = None) -> float | None:
    """Seconds that one wave with these stages takes; None if a stage that will change something never did before."""
    found = from_journals(inventory, stages_changed, lab=lab)
    return found.seconds if found else None


def from_journals(inventory: Path, stages_changed: Mapping[str, bool], *, lab: bool | None = None) -> Estimate | None:
    """As `estimate`, and from how many runs.

    What changes nothing takes seconds; where no run has shown how many, it is left out.
    """
    samples = _samples(inventory, lab, set(stages_changed.items()))
    if any(changed and (stage, changed) not in samples for stage, changed in stages_changed.items()) or not samples:
        return None
    return Estimate(round(sum(map(median, samples.values())), 1), min(map(len, samples.values())))


def _samples(inventory: Path, lab: bool | None, wanted: set[tuple[str, bool]]) -> Samples:
    """Of each stage that is wanted, the seconds in the last runs that changed something in it, or did not."""
    found: Samples = {}
    runs_that_tell = (run for run in runs(inventory, lab=lab) if not run.check and run.state != "running")
    for run in islice(runs_that_tell, SEARCHED):
        if all(len(found.get(key, ())) >= LAST for key in wanted):
            break
        of_run: Samples = {}
        for key, seconds in _stages(run):
            of_run.setdefault(key, []).append(seconds)
        for key in wanted & set(of_run):
            if len(found.get(key, ())) < LAST:
                found.setdefault(key, []).append(median(of_run[key]))
    return found


def _stages(run: RunRecord) -> Iterator[tuple[tuple[str, bool], float]]:
    """Each time that the run went through a stage without a failure: whether it changed something, how long it took."""
    changed = failed = False
    for event in run.events():
        if event["type"] == "stage_started":
            changed = failed = False
        elif event["type"] == "task_finished":
            changed |= event["status"] == "changed"
            failed |= event["status"] in ("failed", "unreachable")
        elif event["type"] == "stopping":
            failed = True
        elif event["type"] == "stage_finished" and not failed:
            yield (str(event["stage"]), changed), float(event["seconds"])
