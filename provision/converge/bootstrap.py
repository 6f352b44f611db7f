"""One run: lock, journal, reach, Ansible, result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import yaml

from provision.converge.journal import Event, Journal
from provision.converge.lock import locked
from provision.converge.recorder import Recorder
from provision.converge.result import Failure, Result
from provision.converge.runner import Playbook, run_playbook
from provision.converge.stages import REPLICA_STAGES, chosen_stages
from provision.inventory import Fleet, Host, select
from provision.ssh import reach

T = TypeVar("T")
MOST_FORKS = 64  # each is a process of some 60 MB on the controller


def bootstrap(
    fleet: Fleet,
    *,
    limit: str | None = None,
    stages: Iterable[str] = (),
    check: bool = False,
    forks: int | None = None,
    verbosity: int = 0,
    on_event: Callable[[Event], None] = lambda _event: None,
    on_text: Callable[[str], None] = lambda _text: None,
) -> Result:
    """Bring the fleet's hosts to what the inventory says; in check mode only say what would change.

    `on_event` gets every event as it happens, `on_text` Ansible's own lines. Raises UsageError for a limit or stage
    that does not exist, and LockedError while another run changes the same inventory.
    """
    hosts, chosen = select(fleet, limit), chosen_stages(stages)
    facts = _facts(fleet, hosts, chosen, check)
    with nullcontext() if check else locked(fleet.path), Journal({**facts, "limit": limit}) as journal:
        emit = _both(journal.event, on_event)
        recorder = Recorder([host.name for host in hosts], ("reach", *chosen), journal.id, emit)
        recorder.send("run_started", **facts)
        run = _Run(fleet, hosts, chosen, recorder, journal)
        return run.go(check, forks or min(MOST_FORKS, len(hosts)), verbosity, _both(journal.text, on_text))


def _facts(fleet: Fleet, hosts: Sequence[Host], stages: Sequence[str], check: bool) -> dict[str, object]:
    return {
        "inventory": str(fleet.path.resolve()),
        "hosts": [host.name for host in hosts],
        "stages": list(stages),
        "check": check,
        "stack": {name: value for name, value in vars(fleet.stack).items() if name != "path" and value},
    }


def _both(first: Callable[[T], None], second: Callable[[T], None]) -> Callable[[T], None]:
    def call(value: T) -> None:
        first(value)
        second(value)

    return call


class _Run:
    def __init__(
        self, fleet: Fleet, hosts: Sequence[Host], stages: Sequence[str], recorder: Recorder, journal: Journal
    ) -> None:
        self.fleet, self.hosts, self.stages = fleet, hosts, stages
        self.recorder, self.journal = recorder, journal

    def go(self, check: bool, forks: int, verbosity: int, on_text: Callable[[str], None]) -> Result:
        start = time.monotonic()
        interrupted = False
        self.reach()
        left_out = [name for name, host in self.recorder.hosts.items() if host.failure]
        if len(left_out) < len(self.hosts):
            playbook = Playbook(
                sources=[*self.fleet.sources, self._source(left_out)],
                hosts=[host.name for host in self.hosts],
                stages=self.stages,
                variables=self.fleet.stack.path,
                check=check,
                forks=forks,
                verbosity=verbosity,
            )
            scratch = self.journal.directory / "runner"
            code, interrupted = run_playbook(playbook, scratch, self.recorder.runner_event, on_text)
            self.recorder.end(0 if interrupted else code)
        return self._result(check, interrupted, time.monotonic() - start)

    def reach(self) -> None:
        self.recorder.begin("reach")
        for found in reach(self.hosts):
            if trouble := found.trouble:
                failure = Failure("reach", trouble.kind, trouble.message, trouble.hint, trouble.unreachable)
                self.recorder.refuse(found.host, failure)
        self.recorder.finish_stage()

    def _source(self, left_out: Sequence[str]) -> Path:
        """One more inventory source: it tells the plays each host's replica, and which hosts to treat as failed."""
        path = self.journal.directory / "run.yml"
        replicas = {host.name: replica.name for replica in self.fleet.replicas for host in replica.hosts}
        tree = {
            "all": {"hosts": {name: {"provision_replica": replica} for name, replica in replicas.items()}},
            "unreached": {"hosts": dict.fromkeys(left_out)},
        }
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    def _result(self, check: bool, interrupted: bool, seconds: float) -> Result:
        self._hold_back()
        result = Result(
            run=self.journal.id,
            directory=self.journal.directory,
            log=self.journal.log,
            check=check,
            hosts=self.recorder.hosts,
            seconds=round(seconds, 1),
            interrupted=interrupted,
            running=self.recorder.running,
            error=self.recorder.error,
        )
        self._tell(result)
        self.journal.finish(result.exit_code)
        return result

    def _tell(self, result: Result) -> None:
        for host in result.hosts.values():
            message = host.failure.message if host.failure else None
            said = {"status": host.status, "counts": host.counts, "message": message, "held_back": list(host.held_back)}
            self.recorder.send("host_finished", host=host.name, **said)
        self.recorder.send(
            "run_finished",
            exit_code=result.exit_code,
            seconds=result.seconds,
            interrupted=result.interrupted,
            error=result.error,
            hosts={host.name: host.status for host in result.hosts.values()},
        )

    def _hold_back(self) -> None:
        """Say which stages a host was spared because another of its replica had failed before them."""
        order = ("reach", *self.stages)
        for replica in self.fleet.replicas:
            members = [self.recorder.hosts[host.name] for host in replica.hosts if host.name in self.recorder.hosts]
            broken = [(order.index(host.failure.stage), host.name) for host in members if host.failure]
            for host in members if broken else ():
                if not host.failure:
                    first, because = min(broken)
                    host.held_back = tuple(stage for stage in order[first + 1 :] if stage in REPLICA_STAGES)
                    host.because = because
