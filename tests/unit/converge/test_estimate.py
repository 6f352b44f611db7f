from __future__ import annotations

from pathlib import Path

import pytest

from provision.converge.estimate import estimate, from_journals
from provision.converge.journal import Journal

PROD = Path("/inventory/prod")


@pytest.fixture(autouse=True)
def _ids(state, monkeypatch):
    counter = iter(range(1000))
    monkeypatch.setattr("provision.converge.journal.random.token_hex", lambda _n: f"{next(counter):04x}")


def run(*stages: tuple[str, str, float], **facts) -> None:
    """A run through stages, each with the status of its one task, and its seconds."""
    with Journal({"inventory": str(PROD), "check": False, "hosts": ["n1"], **facts}) as journal:
        for stage, status, seconds in stages:
            task = {"host": "n1", "stage": stage, "task": "T", "status": status, "actions": []}
            journal.event({"type": "stage_started", "stage": stage})
            journal.event({"type": "task_finished", **task})
            journal.event({"type": "stage_finished", "stage": stage, "seconds": seconds})
        journal.finish(0)


def test_nothing_is_known_at_first():
    assert estimate(PROD, {"host": True}) is None
    run(("host", "ok", 2))
    assert estimate(PROD, {"host": True}) is None
    assert estimate(PROD, {}) is None


def test_runs_that_changed_something_and_runs_that_did_not_are_apart():
    run(("host", "changed", 30), ("gpu", "changed", 10))
    run(("host", "ok", 2), ("gpu", "changed", 20))
    assert estimate(PROD, {"host": True}) == 30
    assert estimate(PROD, {"host": False, "gpu": True}) == 2 + 15
    assert estimate(PROD, {"gpu": True, "swap": False}) == 15
    assert estimate(PROD, {"gpu": True, "swap": True}) is None


def test_the_median_of_the_last_five():
    for seconds in (900, 900, 10, 20, 30, 1, 500):
        run(("host", "changed", seconds))
    found = from_journals(PROD, {"host": True})
    assert (found.seconds, found.runs) == (20, 5)


def test_the_least_known_stage_says_from_how_many_runs():
    run(("host", "changed", 10), ("gpu", "changed", 1))
    run(("host", "changed", 20))
    assert from_journals(PROD, {"host": True, "gpu": True}).runs == 1


def test_a_stage_in_several_waves_counts_once_a_wave():
    run(("ray", "changed", 10), ("ray", "changed", 14))
    assert estimate(PROD, {"ray": True}) == 12


def test_what_does_not_tell_how_long_it_takes():
    run(("host", "changed", 1), check=True)
    run(("host", "failed", 1))
    run(("host", "changed", 1), inventory="/inventory/other")
    assert estimate(PROD, {"host": True}) is None
    run(("host", "changed", 1), lab=True)
    assert estimate(PROD, {"host": True}, lab=False) is None
    assert estimate(PROD, {"host": True}) == 1
