"""From what a run tells of a host, or foretells, to the plan's changes: one for each sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from provision.converge import Change
from provision.converge.result import Difference


@dataclass(frozen=True)
class Step:
    """One sentence of a task, with the resource that it is about, if it is about one."""

    stage: str
    task: str
    action: str
    resource: str
    before: str
    after: str
    effect: str


def steps(changes: Iterable[Change]) -> Iterator[Step]:
    """Every change of every task. A task that tells no sentences is told by its name."""
    for change in changes:
        if change.actions:
            yield from _sentences(change)
        else:
            resource = ", ".join(difference.resource for difference in change.differences)
            before, after = (
                "\n".join(getattr(difference, side).strip() for difference in change.differences)
                for side in ("before", "after")
            )
            effect = next(iter(change.effects), "none")
            yield Step(change.stage, change.task, change.task, resource, before, after, effect)


def _sentences(change: Change) -> Iterator[Step]:
    found = list(_aligned(change.actions, change.differences))
    for position, (action, difference) in enumerate(found):
        effect = change.effects[position] if position < len(change.effects) else "none"
        told = difference or Difference("", "", "")
        yield Step(
            change.stage, change.task, action, told.resource, told.before.strip(), told.after.strip(), effect or "none"
        )


def _aligned(actions: tuple[str, ...], differences: tuple[Difference, ...]) -> Iterator[tuple[str, Difference | None]]:
    """Each sentence with its difference. Both come in order; a step of a resource already shown has none."""
    waiting = list(differences)
    for position, action in enumerate(actions):
        spare = len(actions) - position > len(waiting)
        if waiting and not (spare and waiting[0].resource not in action):
            yield action, waiting.pop(0)
        else:
            yield action, None
