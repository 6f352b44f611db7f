"""Each module, killed at every system call by which it changes something; failed there for want of space, or by a broken disk."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import module_runs
import oracle
import pytest
import yaml
from host_under_test import HostUnderTest
from module_runs import CAN_FAIL, Call, Ended, mutating
from report import Budget
from sweep import Reference, Verdict, mine, spread

Tell = Callable[[str, Verdict], None]
CASES = yaml.safe_load((Path(__file__).parent / "modules.yml").read_text(encoding="utf-8"))
MODULES: dict[str, dict[str, Any]] = CASES["modules"]
# Whoever may not be root looks for the secret wherever a module writes.
SPY = "runuser -u nobody -- grep -rlsF -e '{secret}' /etc /run /tmp /var/tmp /var/lib /srv /opt/provision 2>/dev/null; true"


class ModuleOnHost:
    """One module, what undoes it, and the state that an undisturbed run leaves."""

    def __init__(self, subject: HostUnderTest, name: str) -> None:
        self.subject, self.name, self.case = subject, name, MODULES[name]
        self.params = self.case["params"] if self.case["params"] != "receipt" else subject.step(name)["params"]

    def bare(self) -> None:
        self.subject.sh(self.case["bare"], check=False)

    def run(self, inject: str = "", trace: bool = False) -> Ended:
        if "before" in self.case:
            self.subject.sh(self.case["before"])
        return module_runs.run(self.subject.host, self.name, self.params, inject, trace)

    def state(self) -> oracle.State:
        return oracle.read(self.subject.host, oracle.QUICK)

    def undisturbed(self) -> tuple[list[Call], oracle.State]:
        """The calls of a run that nothing disturbs, and the state after it."""
        self.bare()
        ended = self.run(trace=True)
        assert ended.code == 0, f"{self.name} by itself: {ended.result} {ended.err}"
        assert ended.result["changed"] or self.name == "receipt", (
            f"{self.name} had nothing to do: `bare` undoes too little"
        )
        return list(mutating(ended.trace)), self.state()

    def disturb(self, call: Call, inject: str, wanted: oracle.State) -> Verdict:
        """Run with the disturbance, then run again: the state must be the undisturbed one."""
        verdict, start = Verdict(f"{self.name}: {inject} at {call}", self.name), time.monotonic()
        self.bare()
        ended = self.run(inject=f"{call.name}:{inject}:when={call.when}")
        verdict.reached = ended.was_disturbed
        if "Traceback" in ended.err:
            verdict.problems.append(f"ended with a traceback: {ended.err[-600:]}")
        secret = self.case.get("secret")
        if secret and (seen := self.subject.sh(SPY.format(secret=secret))):
            verdict.problems.append(f"others can read the secret in {seen.strip()}")
        again = self.run()
        verdict.reruns = 1
        if again.code != 0:
            verdict.problems.append(f"the run after it failed: {again.result.get('msg')} {again.err[-600:]}")
        verdict.problems += oracle.differences(wanted, self.state())
        if again.code == 0 and (idle := self.run()).result.get("changed") is not False:
            verdict.problems.append(f"the run after that changed: {idle.result} {idle.err[-300:]}")
        verdict.seconds = round(time.monotonic() - start, 1)
        return verdict


@pytest.fixture(scope="session")
def converged(subject: HostUnderTest, undisturbed: Reference) -> HostUnderTest:
    """The host after an undisturbed run, with the modules in its memory; it does not look after itself meanwhile."""
    subject.put_back("converged")
    subject.sh("systemctl stop provision-drift.timer provision-drift.service")
    module_runs.install(subject.host)
    return subject


def sweep_module(module: ModuleOnHost, faults: tuple[str, ...], seed: int, most: int, tell: Tell) -> list[Verdict]:
    """Disturb a module at its calls, by each fault in turn; the verdicts that are not good."""
    calls, wanted = module.undisturbed()
    assert calls, f"{module.name} changes something by no system call that is known here"
    possible = [call for call in calls if "KILL" in faults[0] or call.name in CAN_FAIL]
    diverged, reached = [], []
    for number, call in itertools.islice(enumerate(spread(possible, seed)), most):
        verdict = module.disturb(call, faults[number % len(faults)], wanted)
        tell("system calls killed" if "KILL" in faults[0] else "system calls failed", verdict)
        reached.append(verdict.reached)
        if verdict.problems:
            diverged.append(verdict)
            wanted = module.undisturbed()[1]  # what this one left behind is charged to it alone
    module.bare()
    # How often a module waits for a program differs from run to run; most calls must be met for the sweep to mean anything.
    assert sum(reached) >= 0.7 * len(reached), (
        f"{module.name}: {len(reached) - sum(reached)} of {len(reached)} calls were not met"
    )
    return diverged


@pytest.mark.parametrize(("faults", "part"), [(("signal=KILL",), 0.2), (("error=ENOSPC", "error=EIO"), 0.1)])
def test_every_call_of_every_module(
    faults: tuple[str, ...], part: float, converged: HostUnderTest, budget: Budget, seed: int, tell: Tell
) -> None:
    deadline, diverged = budget.share(part), []
    for name in spread(mine(sorted(MODULES)), seed):
        if deadline.passed():
            break
        diverged += sweep_module(ModuleOnHost(converged, name), faults, seed, 4 if budget.bounded else 10**6, tell)
    assert diverged == []


def test_every_module_is_swept_or_says_why_not() -> None:
    there = {path.stem for path in module_runs.CHECKOUT.glob("roles/*/library/*.py")}
    assert there == MODULES.keys() | CASES["left_out"].keys()
