"""What can go wrong, by what follows from it."""

from __future__ import annotations


class WeightsError(Exception):
    """It cannot go on: says what is, what was expected, and what to do, as sentences for a person."""


class RefusedError(WeightsError):
    """The source will not give it to this host, however often it is asked."""


class LaterError(Exception):
    """It does not work now: why, and after how many seconds to ask again."""

    def __init__(self, reason: str, seconds: float = 2.0) -> None:
        super().__init__(reason)
        self.reason, self.seconds = reason, seconds
