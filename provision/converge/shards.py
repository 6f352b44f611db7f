"""`--engine ray`: the hosts of a run in shards, each converged by one of the controllers of a Ray cluster.

A shard is an ordinary bootstrap of its hosts. This side keeps what there must be one of: the lock, the journal, the
order of the waves, the result.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from provision.converge import earlier
from provision.converge.bootstrap import facts_of, open_journal
from provision.converge.cluster import Cluster, LostError
from provision.converge.history import taken_over
from provision.converge.journal import Event, Journal, now
from provision.converge.lock import locked
from provision.converge.merge import Merger
from provision.converge.result import INTERRUPT, Failure, HostResult, Result
from provision.converge.sameness import manifest
from provision.converge.shard import Order, Refused
from provision.converge.stages import chosen_stages
from provision.converge.standing import Standing, stand
from provision.errors import LockedError
from provision.inventory import Fleet, Host, select

BEAT = 0.2  # seconds between two looks at the shards
HERE = -1  # this controller, among the parts of the run that are shards


def split(fleet: Fleet, hosts: Sequence[str], count: int) -> list[tuple[str, ...]]:
    """At most `count` shards of about the same size; the hosts of a replica are in one of them."""
    units: dict[str, list[str]] = {}
    for name in hosts:
        replica = fleet.replica_of(name)
        units.setdefault(f"replica {replica.name}" if replica else name, []).append(name)
    shards: list[list[str]] = [[] for _ in range(min(count, len(units)))]
    for unit in sorted(units.values(), key=len, reverse=True):
        min(shards, key=len).extend(unit)
    return [tuple(sorted(shard, key=list(hosts).index)) for shard in shards]


def run_shards(
    fleet: Fleet,
    *,
    address: str | None = None,
    limit: str | None = None,
    stages: Iterable[str] = (),
    check: bool = False,
    full: bool = False,
    forks: int | None = None,
    verbosity: int = 0,
    resumes: str | None = None,
    on_event: Callable[[Event], None] = lambda _event: None,
    on_text: Callable[[str], None] = lambda _text: None,
) -> Result:
    """As `bootstrap` does, on the Ray cluster at `address` (default: RAY_ADDRESS, then the one of this machine).

    Raises UsageError also where Ray or its cluster is missing, or a controller has another inventory, roles or version.
    """
    hosts, chosen = select(fleet, limit), chosen_stages(stages)
    facts = facts_of(fleet, hosts, chosen, check, full)
    lab = fleet.overlaid
    asked = {"limit": limit, "asked_stages": list(stages), "forks": forks, "lab": lab, "resumes": resumes}
    options = {"stages": chosen, "check": check, "full": full, "forks": forks, "verbosity": verbosity}
    with Cluster(address) as cluster, nullcontext() if check else locked(fleet.path) as lock:
        cluster.compare(_order(fleet, "", 0, (), options))
        with open_journal(fleet, {**facts, **asked, "engine": "ray", "ray_address": address}) as journal:
            run = _Run(fleet, hosts, cluster, journal, options, on_event, on_text)
            run.send("run_started", **facts)
            if not check:
                earlier.keep(fleet, journal)
            if lock:
                lock.name(journal.id)
                if lock.took_over:
                    run.send("lock_taken_over", **taken_over(lock.took_over))
            return run.go()


def _order(fleet: Fleet, run: str, number: int, hosts: Sequence[str], options: Mapping[str, Any]) -> Order:
    return Order(number, run, Path.cwd(), fleet.sources, manifest(fleet.sources), tuple(hosts), options)


class _Run:
    def __init__(
        self,
        fleet: Fleet,
        hosts: Sequence[Host],
        cluster: Cluster,
        journal: Journal,
        options: Mapping[str, Any],
        on_event: Callable[[Event], None],
        on_text: Callable[[str], None],
    ) -> None:
        self.fleet, self.chosen, self.cluster, self.journal, self.options = fleet, hosts, cluster, journal, options
        self.on_event, self.on_text = on_event, on_text
        self.merger = Merger(journal.id, ("reach", "mend", *options["stages"], "verify"), self.emit)
        self.hosts = {host.name: HostResult(host.name) for host in hosts}
        self.errors: list[str] = []
        self.running: dict[str, tuple[str, str]] = {}
        self.interrupted = self.locked = self.begun = False
        self.shards = 0

    def emit(self, event: Event) -> None:
        self.journal.event(event)
        self.on_event(self.journal.scrub.value(event))

    def send(self, kind: str, **fields: object) -> None:
        self.emit({"type": kind, "time": now(), "run": self.journal.id, **fields})

    def go(self) -> Result:
        start = time.monotonic()
        with _asked_to_stop() as stop:
            waves = self._waves(self._look())
            for number, wave in enumerate(waves):
                self.send("wave_started", wave=number + 1, hosts=list(wave))
                self._wave(self._whole(wave), stop)
                failed = next((name for name in wave if self.hosts[name].failure), None)
                if self.interrupted or self.errors or failed:
                    for name in (name for later in waves[number + 1 :] for name in later):
                        self.hosts[name].spared = failed or INTERRUPT
                    break
        if self.locked and not self.begun:
            raise LockedError("\n".join(self.errors))
        return self._finish(round(time.monotonic() - start, 1))

    def _look(self) -> Standing:
        """What stands, over the whole fleet: only here is it known which replicas must not be disturbed at once."""
        self.merger.begin(HERE)
        self.merger.event(HERE, {"type": "stage_started", "stage": "reach"})
        standing = stand(self.fleet, self.chosen, self.options["stages"], full=self.options["full"], who=False)
        earlier.note(self.fleet, standing.inputs, self.journal)
        for name, visits in standing.visits.items():
            self.hosts[name].visited = visits
        standing_still = [n for n, told in standing.receipts.items() if not told.trouble and n not in standing.visits]
        self.send("verified", hosts=standing_still, visits={}, waves=[list(wave) for wave in standing.waves])
        return standing

    def _waves(self, standing: Standing) -> list[tuple[str, ...]]:
        """Those of the fleet; with the hosts in the first that cannot be asked, whose shard will say so."""
        waves = [tuple(standing.visits)] if self.options["check"] and standing.visits else list(standing.waves)
        known = {name for wave in waves for name in self._whole(wave)}
        lost = tuple(name for name, told in standing.receipts.items() if told.trouble and name not in known)
        if not lost:
            return waves
        return [(*waves[0], *lost), *waves[1:]] if waves else [lost]

    def _whole(self, names: Sequence[str]) -> list[str]:
        """With all chosen hosts of their replicas: a host that cannot be reached holds back the others of its own."""
        replicas = [self.fleet.replica_of(name) for name in names]
        mates = {host.name for replica in replicas if replica for host in replica.hosts}
        return [name for name in self.hosts if name in mates or name in names]

    def _wave(self, hosts: Sequence[str], stop: list[int]) -> None:
        tasks = {}
        for shard in split(self.fleet, hosts, self.cluster.size):
            order = _order(self.fleet, self.journal.id, self.shards, shard, self.options)
            self.merger.begin(order.number)
            tasks[self.cluster.submit(order)] = order
            self.shards += 1
        self.merger.end(HERE)
        while tasks:
            done = self.cluster.wait(list(tasks), BEAT)
            for number, kind, item in self.cluster.take(len(stop)):
                self.merger.event(number, item) if kind == "event" else self._text(number, item)
            for task in done:
                self._ended(tasks.pop(task), task)

    def _text(self, number: int, text: str) -> None:
        for line in text.splitlines():
            said = f"[shard {number}] {line}" if self.shards > 1 else line
            self.journal.text(said)
            self.on_text(said)

    def _ended(self, order: Order, task: Any) -> None:  # noqa: ANN401 - a reference of Ray's
        self.merger.end(order.number)
        try:
            result = self.cluster.result(task)
        except LostError as error:
            self._lost(order, str(error))
            return
        if isinstance(result, Refused):
            self.errors.append(result.reason)
            self.locked |= result.is_locked
        elif result is None or result.interrupted:
            self.interrupted = True
        if isinstance(result, Result):
            self.begun = True
            self.hosts |= result.hosts
            self.running |= result.running
            self.errors += [result.error] if result.error else []

    def _lost(self, order: Order, reason: str) -> None:
        """The controller that had these hosts is gone, or failed in a way that nobody foresaw."""
        for name in order.hosts:
            stage = self.merger.last.get(name, "reach")
            message = f"The controller that had this host ended without a result: {reason}"
            hint = "What it began may still go on on the host; the next run waits for it. Run the same command again."
            self.hosts[name].failure = Failure(stage, "controller", message, hint)

    def _finish(self, seconds: float) -> Result:
        self.merger.end(HERE)
        result = Result(
            run=self.journal.id,
            directory=self.journal.directory,
            log=self.journal.log,
            check=bool(self.options["check"]),
            hosts=self.hosts,
            seconds=seconds,
            interrupted=self.interrupted,
            running=self.running,
            error="\n".join(dict.fromkeys(self.errors)) or None,
            trouble=self.journal.trouble,
        )
        for host in (host for host in self.hosts.values() if host.name not in self.merger.told):
            message = host.failure.message if host.failure else None
            self.send("host_finished", host=host.name, status=host.status, counts={}, message=message, held_back=[])
        said = {"seconds": seconds, "interrupted": result.interrupted, "error": result.error}
        statuses = {host.name: host.status for host in result.hosts.values()}
        self.send("run_finished", exit_code=result.exit_code, **said, hosts=statuses)
        self.journal.finish(result.exit_code)
        return result


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Grows with each Ctrl-C or SIGTERM: the shards stop as runs of their own would, and no more waves are begun."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _frame: asked.append(number)) for number in numbers}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
