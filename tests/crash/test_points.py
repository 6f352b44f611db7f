"""The controller killed at each point of a run: before a task, while its module works on the host, when its answer is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from changed import changed_stages, stages_of
from host_under_test import HostUnderTest
from report import Budget
from sweep import Reference, Verdict, crash, mine, spread

Tell = Callable[[str, Verdict], None]


def test_the_oracle_sees_what_a_run_does(subject: HostUnderTest, undisturbed: Reference) -> None:
    """A host after a run, freshly booted, differs from the bare one in every area that a run is about."""
    subject.reset()
    bare = subject.state()
    for area in ("files", "packages", "holds", "units", "swaps", "knobs", "hardware"):
        assert bare[area] != undisturbed.state[area], area


def test_every_point(
    subject: HostUnderTest, undisturbed: Reference, budget: Budget, seed: int, tell: Tell, scratch: Path
) -> None:
    stages = changed_stages() if budget.bounded else None
    points = [point for point in undisturbed.points if stages is None or point.stage in stages] or undisturbed.points
    deadline, diverged = budget.share(0.35), []
    for point in spread(mine(points), seed):
        if deadline.passed():
            break
        verdict = crash(subject, undisturbed.state, point, scratch)
        tell("controller points", verdict)
        diverged += [verdict] if verdict.problems else []
    assert diverged == []


def test_a_change_of_what_roles_share_touches_all_stages() -> None:
    assert stages_of(["roles/swap/library/swap_area.py", "docs/lab.md"]) == {"swap"}
    assert stages_of(["playbooks/stages/gpu.yml"]) == {"gpu"}
    assert stages_of(["roles/swap/tasks/main.yml", "roles/host/module_utils/provision_host.py"]) is None
