"""What can go wrong, as a person is told it.

ProvisionError            anything we explain ourselves; carries an exit code
├── UsageError            64  the command line
├── InventoryError        65  inventory, variables or lock file; one or many `Problem`s
├── LockedError           75  another run holds the fleet
├── PlanMovedError         2  the inventory or the hosts are not what they were when a plan was made; or 1, 3: a host
│                             that the plan needs cannot be used, or does not answer
└── LabError               1  the simulated fleet could not be brought up, changed or taken down
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from provision import exits


class ProvisionError(Exception):
    """Anything that we can explain: a message for a person, and the exit code that it means."""

    exit_code = exits.FAILED


class UsageError(ProvisionError):
    """The command line asks for something that does not exist."""

    exit_code = exits.USAGE


class LockedError(ProvisionError):
    """Another run holds this fleet."""

    exit_code = exits.LOCKED


class PlanMovedError(ProvisionError):
    """A plan no longer holds, and nothing was done."""

    def __init__(self, message: str, exit_code: int = exits.PENDING) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class LabError(ProvisionError):
    """The simulated fleet could not be brought up, changed or taken down."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input: where, what, and what to do about it."""

    message: str
    path: Path | None = None
    line: int | None = None
    hint: str | None = None

    def __str__(self) -> str:
        place = "" if self.path is None else f"{self.path}:{self.line}: " if self.line else f"{self.path}: "
        return f"{place}{self.message}" + (f"\n  {self.hint}" if self.hint else "")


class InventoryError(ProvisionError):
    """The inventory, its variables or its lock file are not valid."""

    exit_code = exits.INVALID

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))
