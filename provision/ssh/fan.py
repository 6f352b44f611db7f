"""The same work on many hosts at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE = 64


def each(
    items: Sequence[T],
    work: Callable[[T], R],
    *,
    at_once: int = AT_ONCE,
    on_done: Callable[[R], object] = lambda _result: None,
) -> list[R]:
    """Do the work for all items, in their order; `on_done` gets each result as it comes, in the caller's thread.

    Threads are daemons, so that Ctrl-C need not wait for hosts that do not answer. What `work` raises is raised here.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    found: queue.SimpleQueue[tuple[int, R | BaseException]] = queue.SimpleQueue()
    for number in range(len(items)):
        waiting.put(number)

    def run() -> None:
        while True:
            try:
                number = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                found.put((number, work(items[number])))
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                found.put((number, error))

    for _ in range(min(at_once, len(items))):
        threading.Thread(target=run, daemon=True).start()
    results: dict[int, R] = {}
    for _ in items:
        number, result = found.get()
        if isinstance(result, BaseException):
            raise result
        results[number] = result
        on_done(result)
    return [results[number] for number in range(len(items))]
