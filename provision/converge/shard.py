"""One shard of a run: what a controller of a Ray cluster does for its share of the hosts.

Everything goes through a mailbox, a Ray actor: events and text one way, the wish to stop the other.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from provision.converge.bootstrap import bootstrap
from provision.converge.journal import Event
from provision.converge.result import Result
from provision.converge.sameness import differences, manifest
from provision.errors import LockedError, ProvisionError
from provision.inventory import load_fleet
from provision.state import state_dir

BEAT = 0.25  # seconds between two looks into the mailbox

Item = tuple[int, str, Any]  # number of the shard, "event" or "text", and what it is
Give = Callable[[list[Item]], int]  # Mailbox.give, wherever the mailbox is


@dataclass(frozen=True)
class Order:
    """What a shard is to do. Nothing in it is secret: the inventory is read where the shard runs."""

    number: int
    run: str
    directory: Path
    sources: tuple[Path, ...]
    manifest: Mapping[str, str]
    hosts: tuple[str, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Refused:
    """Why a shard was not begun."""

    reason: str
    is_locked: bool = False


class Mailbox:
    """Between the shards and whoever started them; lives in a process of its own."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._stop = 0

    def give(self, items: list[Item]) -> int:
        """From a shard; tells it how often the run was asked to stop."""
        self._items += items
        return self._stop

    def take(self, stop: int) -> list[Item]:
        """All that has come since the last time."""
        items, self._items, self._stop = self._items, [], stop
        return items


class Outbox:
    """A shard's end of the mailbox: sends in the background; when the run shall stop, Ctrl-C comes to this thread."""

    def __init__(self, number: int, give: Give) -> None:
        self._number, self._give = number, give
        self._main = threading.get_ident()
        self._items: deque[Item] = deque()
        self._ended = threading.Event()
        self._asked = 0
        self._thread = threading.Thread(target=self._work, daemon=True)

    def event(self, event: Event) -> None:
        """Send one event."""
        self._items.append((self._number, "event", event))

    def text(self, text: str) -> None:
        """Send lines of Ansible's own text."""
        self._items.append((self._number, "text", text))

    def __enter__(self) -> Outbox:
        self._send()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._send()

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop."""
        return self._asked > 0

    def _work(self) -> None:
        while not self._ended.wait(BEAT):
            before = self._asked
            self._send()
            for _ in range(self._asked - before):
                signal.pthread_kill(self._main, signal.SIGINT)

    def _send(self) -> None:
        items = [self._items.popleft() for _ in range(len(self._items))]
        self._asked = self._give(items)


def check(order: Order) -> str:
    """Why this controller may not run what the one that asks would run; empty if it may."""
    try:
        os.chdir(order.directory)
        found = manifest(order.sources)
    except OSError as error:
        return f"{error.filename or order.directory}: {error.strerror}"
    return differences(order.manifest, found)


def run_shard(order: Order, give: Give) -> Result | Refused | None:
    """Converge the order's hosts; None if the run was stopped before."""
    if wrong := check(order):
        return Refused(f"controller {os.uname().nodename} may not take part: {wrong}")
    try:
        with _interruptible(), _apart(order), Outbox(order.number, give) as outbox:
            if outbox.stopped:
                return None
            fleet = load_fleet(order.sources[0], order.sources[1:])
            limit = ",".join(order.hosts)
            return bootstrap(fleet, limit=limit, on_event=outbox.event, on_text=outbox.text, **order.options)
    except ProvisionError as error:
        return Refused(str(error), isinstance(error, LockedError))
    except KeyboardInterrupt:
        return None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C means here what it means in a terminal: Ray's workers, and with them what they start, block it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler or signal.SIG_DFL)


@contextmanager
def _apart(order: Order) -> Iterator[None]:
    """The shard's own journal and lock lie apart from those of this controller's runs, until it has ended.

    The journal of the whole run, kept by the controller that started it, has all that this one has.
    """
    place, before = state_dir() / "shards" / order.run / str(order.number), os.environ.get("XDG_STATE_HOME")
    os.environ["XDG_STATE_HOME"] = str(place)
    try:
        yield
    finally:
        os.environ.pop("XDG_STATE_HOME")
        if before is not None:
            os.environ["XDG_STATE_HOME"] = before
        shutil.rmtree(place, ignore_errors=True)
        with suppress(OSError):  # another shard of the run is here, too
            place.parent.rmdir()
