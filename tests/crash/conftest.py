"""What the crash suite shares: one simulated host, an undisturbed run of it, a budget, a report.

CRASH_BUDGET: seconds that the sweeps may take together; 0 for all there is. CRASH_SEED: where a sweep that is cut short begins, and
which pairs of faults are tried; printed with the counts. CRASH_STAGES: the stages to run, comma-separated.
CRASH_PART: which part of everything to do, such as 2/3.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from host_under_test import STAGES, HostUnderTest
from report import Budget, Report
from sweep import Reference, Verdict, reference

SEED = int(os.environ.get("CRASH_SEED") or time.time())
REPORT = Report(SEED)


@pytest.fixture(scope="session")
def seed() -> int:
    return SEED


@pytest.fixture(scope="session")
def budget() -> Budget:
    return Budget(float(os.environ.get("CRASH_BUDGET", "300")))


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostUnderTest]:
    """The host, bare."""
    stages = tuple(filter(None, os.environ.get("CRASH_STAGES", "").split(","))) or STAGES
    host = HostUnderTest(tmp_path_factory.mktemp("crash"), stages)
    try:
        yield host.up()
    finally:
        host.down()


@pytest.fixture(scope="session")
def undisturbed(subject: HostUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A run of a bare host that nothing disturbed; its end is kept as `converged`."""
    found = reference(subject, tmp_path_factory.mktemp("undisturbed"))
    subject.keep("converged")
    return found


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[[str, Verdict], None]:
    """Enter a verdict into the report, and show it as it comes."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def add(area: str, verdict: Verdict) -> None:
        REPORT.add(area, verdict)
        with capture.global_and_fixture_disabled():
            line = f"\n  {verdict.outcome} in {verdict.seconds:5.1f} s · {verdict.what}"
            print(line + "".join(f"\n    {problem}" for problem in verdict.problems), end="", flush=True)  # noqa: T201

    return add


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The counts, as the last thing said."""
    terminalreporter.write_line(REPORT.summary())
