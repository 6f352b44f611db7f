"""Each kind of resource broken in each way: drift names exactly that, one run repairs exactly that, and what is foreign is left alone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import yaml
from host_under_test import HostUnderTest, ran
from report import Budget
from sweep import Reference, Verdict, mine, spread

Tell = Callable[[str, Verdict], None]
MATRIX = yaml.safe_load((Path(__file__).parent / "drift_matrix.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def standing(subject: HostUnderTest, undisturbed: Reference) -> HostUnderTest:
    """The host after an undisturbed run."""
    subject.put_back("converged")
    subject.bootstrap()  # what a power cut takes is brought back
    return subject


def named(subject: HostUnderTest) -> dict[str, list[str]]:
    """What drift names, by stage: resources, and the errors of what could not be verified."""
    subject.site.environment = subject.environment()
    run = subject.site.run("drift", subject.site.directory, "--json", code=None)
    assert run.code in (0, 1, 2), str(run)
    (host,) = json.loads(run.out)["hosts"]
    found = {}
    for stage in host["stages"]:
        words = [finding["resource"] for finding in stage["findings"]] + [f"error: {stage['error']}"] * bool(
            stage["error"]
        )
        words += [f"fact: {fact}" for fact in stage["facts"]]
        if words or not stage["stands"]:
            found[stage["stage"]] = words
    return found


def mismatch(stage: str, names: list[str], seen: dict[str, list[str]]) -> list[str]:
    """In what drift's answer is not the expected one; resources without a name of their own are steps of others."""
    problems = [f"drift does not name {stage}"] if stage not in seen else []
    problems += [f"drift also names {other}: {words}" for other, words in seen.items() if other != stage]
    words = {word for word in seen.get(stage, ()) if word and not word.startswith("fact: ")}
    plain = {name for name in names if not name.startswith("re:")}
    patterns = [name.removeprefix("re:") for name in names if name.startswith("re:")]
    problems += [f"drift does not name {name}; it names {sorted(words)}" for name in plain - words]
    extra = {word for word in words - plain if not any(re.match(pattern, word) for pattern in patterns)}
    return problems + [f"drift also names {word}" for word in sorted(extra)]


def break_and_repair(subject: HostUnderTest, line: dict[str, Any], wanted: oracle.State) -> Verdict:
    verdict, start = Verdict(f"{line['covers']} of {line['stage']}: {line['how']}", line["stage"]), time.monotonic()
    subject.sh(line["break"])
    seen = named(subject)
    if "refused" in line:
        refused(subject, line, seen, verdict)
    else:
        verdict.problems += mismatch(line["stage"], line["names"], seen)
    repaired = ran(subject.bootstrap(code=None))
    verdict.reruns = 1
    if repaired.code != 0:
        verdict.problems.append(f"bootstrap ended with {repaired.code}: {repaired.text[-800:]}")
    extra = set(repaired.visited) - {line["stage"], *line.get("visits", ())}
    if line["stage"] not in repaired.visited or extra:
        verdict.problems.append(f"bootstrap visited {repaired.visited}")
    if "undo" in line:
        subject.sh(line["undo"], check=False)
    verdict.problems += oracle.differences(wanted, subject.state())
    if after := named(subject):
        verdict.problems.append(f"drift after the repair: {after}")
    verdict.seconds = round(time.monotonic() - start, 1)
    return verdict


def refused(subject: HostUnderTest, line: dict[str, Any], seen: dict[str, list[str]], verdict: Verdict) -> None:
    """What a person decided is not undone behind their back: drift and bootstrap say so, in words."""
    if not any(line["refused"] in word for word in seen.get(line["stage"], ())):
        verdict.problems.append(f"drift does not say {line['refused']!r}: {seen}")
    run = subject.bootstrap(code=None)
    if run.code != 1 or line["refused"] not in run.text:
        verdict.problems.append(f"bootstrap ended with {run.code} and does not say {line['refused']!r}")
    subject.sh(line["mend"])


def test_each_drift_is_named_and_repaired_alone(standing: HostUnderTest, budget: Budget, seed: int, tell: Tell) -> None:
    wanted, diverged, deadline = standing.state(), [], budget.share(0.2)
    lines = [line for line in MATRIX["drifts"] if line["stage"] in standing.stages]
    for line in spread(mine(lines), seed):
        if deadline.passed():
            break
        verdict = break_and_repair(standing, line, wanted)
        tell("drifts", verdict)
        if verdict.problems:
            diverged.append(verdict)
            standing.put_back("converged")
            standing.bootstrap()
            wanted = standing.state()
    assert diverged == []


def test_what_is_foreign_is_left_alone(standing: HostUnderTest, budget: Budget, seed: int, tell: Tell) -> None:
    wanted, diverged, deadline = standing.state(), [], budget.share(0.05)
    for line in spread(MATRIX["foreign"], seed):
        if deadline.passed():
            break
        verdict, start = Verdict(f"foreign: {line['how']}", "foreign"), time.monotonic()
        standing.sh(line["break"])
        before = standing.state()
        if not any(each.startswith(line["area"]) for each in oracle.differences(wanted, before)):
            verdict.problems.append("the oracle does not see it")
        if seen := named(standing):
            verdict.problems.append(f"drift names {seen}")
        run = ran(standing.bootstrap(code=None))
        if run.code or run.visited:
            verdict.problems.append(f"bootstrap ended with {run.code} and visited {run.visited}")
        verdict.problems += oracle.differences(before, standing.state())
        standing.sh(line["undo"], check=False)
        verdict.seconds = round(time.monotonic() - start, 1)
        tell("foreign changes", verdict)
        diverged += [verdict] if verdict.problems else []
    assert diverged == []


def test_a_lost_receipt_is_made_again(standing: HostUnderTest, tell: Tell) -> None:
    wanted, verdict, start = standing.state(), Verdict("a receipt deleted", "receipt"), time.monotonic()
    standing.sh("rm /var/lib/provision/receipts/swap.json")
    run = ran(standing.bootstrap(code=None))
    verdict.problems += [] if (run.code, run.visited, run.changes) == (0, ["swap"], []) else [str(run)]
    verdict.problems += oracle.differences(wanted, standing.state())
    verdict.seconds = round(time.monotonic() - start, 1)
    tell("drifts", verdict)
    assert verdict.problems == []


def test_the_matrix_covers_every_parameter_of_every_step(standing: HostUnderTest) -> None:
    """What a receipt verifies must have a line that breaks it, or be said to be no resource."""
    covered = {(line["stage"], line["covers"]) for line in MATRIX["drifts"]}
    missing = set()
    for stage, receipt in standing.receipts().items():
        for step in receipt["steps"]:
            for name, value in step["params"].items():
                about = f"{step['module']}.{name}"
                if value in ([], {}, "", None) or name in MATRIX["how"].get(step["module"], ()):
                    continue
                if (stage, about) not in covered:
                    missing.add(f"{stage}: {about}")
    assert sorted(missing) == []
