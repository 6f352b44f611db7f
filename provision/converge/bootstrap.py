"""One run: lock, journal, what stands, Ansible wave by wave for what does not, what stands then, result."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from provision.converge import earlier
from provision.converge.handover import write_playbook, write_source, write_variables
from provision.converge.history import taken_over
from provision.converge.journal import Event, Journal
from provision.converge.lease import Lease
from provision.converge.lock import locked
from provision.converge.recorder import Recorder
from provision.converge.result import CANARY, INTERRUPT, Failure, HostResult, Result
from provision.converge.rotation import Rotation
from provision.converge.runner import Playbook, Watch, run_playbook
from provision.converge.scrub import secret_values
from provision.converge.stages import REPLICA_STAGES, chosen_stages
from provision.converge.standing import Standing, less_reboots, mended, reboot_reasons, serves, stand, touched
from provision.drift import mend
from provision.inventory import Fleet, Host, Replica, select

T = TypeVar("T")
MOST_FORKS = 64  # each is a process of some 60 MB on the controller
ROUNDS = 3  # what a stage makes another one lose is made good in the next round; more than that is a defect


def bootstrap(
    fleet: Fleet,
    *,
    limit: str | None = None,
    stages: Iterable[str] = (),
    check: bool = False,
    full: bool = False,
    forks: int | None = None,
    verbosity: int = 0,
    canary: bool = False,
    resumes: str | None = None,
    back_to: str | None = None,
    reboots: Collection[str] | None = None,
    approve: Callable[[], None] = lambda: None,
    on_event: Callable[[Event], None] = lambda _event: None,
    on_text: Callable[[str], None] = lambda _text: None,
) -> Result:
    """Bring the fleet's hosts to what the inventory says; in check mode only say what would change.

    Stages that provably stand on a host are not visited there, unless `full` asks for all. With `canary` only the first
    of the replicas that serve and would be disturbed is changed. `resumes` and `back_to` (whose inventory this is) are
    ids of earlier runs, for the journal. Where a plan is applied, `reboots` are the hosts of which it names a reboot:
    no other is rebooted. `approve` is called once the hosts are held and before anything is done to them: what it
    raises ends the run there. `on_event` gets every event as it happens, `on_text` Ansible's own lines.
    Raises UsageError for a limit or stage that does not exist, and LockedError while another run changes the same
    hosts.
    """
    hosts, chosen = select(fleet, limit), chosen_stages(stages)
    facts = facts_of(fleet, hosts, chosen, check, full)
    lab = fleet.overlaid
    asked = {
        "limit": limit,
        "asked_stages": list(stages),
        "forks": forks,
        "lab": lab,
        "canary": canary,
        "resumes": resumes,
        "back_to": back_to,
        "reboots": None if reboots is None else sorted(reboots),
    }
    with nullcontext() if check else locked(fleet.path) as lock, open_journal(fleet, {**facts, **asked}) as journal:
        emit = _both(journal.event, lambda event: on_event(journal.scrub.value(event)))
        recorder = Recorder([host.name for host in hosts], ("reach", "mend", *chosen, "verify"), journal.id, emit)
        recorder.send("run_started", **facts)
        if not check:
            earlier.keep(fleet, journal)
        if lock:
            lock.name(journal.id)
            if lock.took_over:
                recorder.send("lock_taken_over", **taken_over(lock.took_over))
        how = _How(check, full, forks or min(MOST_FORKS, len(hosts)), verbosity, canary, reboots, approve)
        text = _both(journal.text, lambda text: on_text(journal.scrub.text(text)))
        return _Run(fleet, hosts, chosen, how, recorder, journal, text).go()


def facts_of(fleet: Fleet, hosts: Sequence[Host], stages: Sequence[str], check: bool, full: bool) -> dict[str, object]:
    """What a run is about, for its journal and its first event."""
    return {
        "inventory": str(fleet.path.resolve()),
        "hosts": [host.name for host in hosts],
        "stages": list(stages),
        "check": check,
        "full": full,
        "stack": {name: value for name, value in vars(fleet.stack).items() if name != "path" and value},
    }


def open_journal(fleet: Fleet, facts: Mapping[str, object]) -> Journal:
    """A journal that masks the fleet's secrets."""
    return Journal(facts, secret_values(fleet))


def _both(first: Callable[[T], None], second: Callable[[T], None]) -> Callable[[T], None]:
    def call(value: T) -> None:
        first(value)
        second(value)

    return call


@dataclass(frozen=True)
class _How:
    check: bool
    full: bool
    forks: int
    verbosity: int
    canary: bool
    reboots: Collection[str] | None
    approve: Callable[[], None]


class _Run:
    def __init__(
        self,
        fleet: Fleet,
        hosts: Sequence[Host],
        stages: Sequence[str],
        how: _How,
        recorder: Recorder,
        journal: Journal,
        on_text: Callable[[str], None],
    ) -> None:
        self.fleet, self.hosts, self.stages, self.how = fleet, hosts, stages, how
        self.recorder, self.journal, self.on_text = recorder, journal, on_text
        self.interrupted = False
        self.canary: str | None = None
        self.waves = 0
        self.lease: Lease | None = None
        gates = {*REPLICA_STAGES} <= {*stages}
        self.rotation = Rotation(fleet, recorder, journal.id, self._hold, gates, self._may_serve)

    def go(self) -> Result:
        """Look, change what does not stand, look again; until all stands, or it is clear that it will not."""
        start = time.monotonic()
        standing = self.look("reach", self.hosts, full=self.how.full)
        earlier.note(self.fleet, standing.inputs, self.journal)
        if standing.visits and self.how.check:
            self.change(standing)
        elif standing.visits:
            with Lease(self._named(standing.visits), self.journal.id) as self.lease:
                for name, holder in self.lease.took_over.items():
                    self.recorder.send("lock_taken_over", host=name, **taken_over(holder))
                self.how.approve()
                self._come_to_rest(standing)
                self._return_all()
        else:
            self._return_all()
        return self._result(time.monotonic() - start)

    def _come_to_rest(self, standing: Standing) -> None:
        standing = self.mend(standing)
        for _ in range(ROUNDS):
            if not (standing.visits and self.change(standing)):
                return
            hosts = self.recorder.hosts
            fine = [name for name in standing.visits if not (hosts[name].failure or hosts[name].spared)]
            standing = self.look("verify", self._named(fine))
        self._give_up(standing)

    def look(self, stage: str, hosts: Sequence[Host], full: bool = False) -> Standing:
        """Ask hosts what stands; those that cannot be asked are refused, which the next waves then know."""
        self.recorder.begin(stage)
        standing = stand(self.fleet, hosts, self.stages, full=full, who=False)
        standing = self._as_planned(standing, [host.name for host in hosts], full)
        for told in standing.receipts.values():
            if told.trouble:
                trouble = told.trouble
                failure = Failure(stage, trouble.kind, trouble.message, trouble.hint, trouble.unreachable)
                self.recorder.refuse(told.host, failure)
            for answer in (receipt.answer for receipt in told.stages.values()):
                if answer:
                    self.recorder.answered(told.host, answer["tokens"], answer["latency_ms"])
        self.recorder.finish_stage()
        for name, own in standing.visits.items():
            self.recorder.hosts[name].visited += own
        return self._verified(standing, [host.name for host in hosts])

    def _as_planned(self, standing: Standing, asked: Collection[str], full: bool = False) -> Standing:
        """Without the reboots of which the plan that is applied names none; why they wait is known of who was asked."""
        if self.how.reboots is None:
            return standing
        why = {name: reboot_reasons(told) for name, told in standing.receipts.items() if name not in self.how.reboots}
        for name in why.keys() & {*asked}:
            self.recorder.hosts[name].waits = why[name]
        waiting = [name for name, reasons in why.items() if reasons]
        return less_reboots(self.fleet, standing, waiting, self.stages, full) if waiting else standing

    def _verified(self, standing: Standing, hosts: Sequence[str]) -> Standing:
        standing = self._possible(standing)
        visits = {name: {visit.stage: visit.why for visit in own} for name, own in standing.visits.items()}
        waves = [list(wave) for wave in standing.waves]
        self.recorder.send("verified", hosts=list(hosts), visits=visits, waves=waves)
        return standing

    def mend(self, standing: Standing) -> Standing:
        """Have hosts set right by themselves what they can, without Ansible; what they cannot is visited."""
        asked = standing.mendable()
        if not asked:
            return standing
        self.recorder.begin("mend")
        self.recorder.send("mending", hosts={name: list(stages) for name, stages in asked.items()})
        told = mend(asked, self.hosts, self.stages)
        for host in told:
            for done in host.mended:
                self.recorder.mended(host.host, done)
        self.recorder.finish_stage()
        standing = self._as_planned(mended(self.fleet, standing, told, self.stages), asked)
        return self._verified(standing, list(asked))

    def change(self, standing: Standing) -> bool:
        """Run what is to be visited, wave by wave, or up to the canary; false if something stopped it."""
        waves = [tuple(standing.visits)] if self.how.check else standing.waves
        for number, hosts in enumerate(waves, start=1):
            self.waves += 1
            self.recorder.send("wave_started", wave=self.waves, hosts=list(hosts))
            leaving, idle = self._leaving(standing, hosts)
            if self._taken_out(leaving, idle, [name for wave in waves[number - 1 :] for name in wave]):
                self._play(standing, {name: standing.visited(name) for name in hosts})
            failed = any(self.recorder.hosts[name].failure for name in hosts)
            if not (failed or self.interrupted or self.recorder.error):
                failed = not self.rotation.come_back([*idle, *leaving])
            if self.interrupted or self.recorder.error or (failed and number < len(waves)):
                self._stop_before(waves[number:])
                return False
            if self.how.canary and leaving and number < len(waves):
                self.canary = leaving[0].name
                self._stop_before(waves[number:])
                return True
        return True

    def _leaving(self, standing: Standing, hosts: Sequence[str]) -> tuple[list[Replica], list[Replica]]:
        """The replicas that a wave takes out of service; and those that it would, did they serve."""
        if self.how.check:
            return [], []
        found = touched(self.fleet, standing.receipts, standing.visits)
        here = [replica for replica in found if any(host.name in hosts for host in replica.hosts)]
        leaving = [replica for replica in here if serves(replica, standing.receipts)]
        return leaving, [replica for replica in here if replica not in leaving]

    def _hold(self, replica: Replica) -> Lease:
        """A replica's hosts, as far as this run does not hold them already."""
        held = self.lease.names if self.lease else set()
        return Lease([host for host in replica.hosts if host.name not in held], self.journal.id)

    def _taken_out(self, leaving: Sequence[Replica], idle: Sequence[Replica], ahead: Collection[str]) -> bool:
        """Have replicas leave rotation, and before that those come back that have been changed: somebody must serve."""
        try:
            self.rotation.keep_out(idle)
            if not leaving:
                return True
            self._return_all(ahead)
            return self.rotation.leave(leaving)
        except KeyboardInterrupt:  # a drain takes its time; nothing was changed yet, so it is taken back
            self.interrupted = True
            self.rotation.come_back([*idle, *leaving])
            return False

    def _return_all(self, ahead: Collection[str] = ()) -> None:
        """What this run, or one that died, left drained comes back, unless one of its hosts failed or is still `ahead`.

        Gateways that know nothing of a drain are told.
        """
        if self.how.check or self.interrupted or self.recorder.error:
            return
        known = self.recorder.hosts
        bad = {name for name, host in known.items() if host.failure or host.spared or name in ahead}
        self.rotation.come_back(
            replica
            for replica in self.fleet.replicas
            if any(host.name in known for host in replica.hosts) and not any(host.name in bad for host in replica.hosts)
        )
        self.rotation.tell_all()

    def _may_serve(self, replica: Replica) -> bool:
        """Whether a replica's proof, Ray and vLLM stand on all its hosts, whatever this run itself is about."""
        found = stand(self.fleet, replica.hosts, REPLICA_STAGES, who=False)
        return not found.visits and not any(told.trouble for told in found.receipts.values())

    def _note_lost(self) -> None:
        """A host that another run took over meanwhile is no longer ours to change."""
        for name, reason in (self.lease.lost if self.lease else {}).items():
            self.recorder.hosts[name].failure = Failure("verify", "lease", reason)

    def _play(self, standing: Standing, visits: Mapping[str, Sequence[str]]) -> None:
        left_out = [name for name, host in self.recorder.hosts.items() if host.failure]
        stages = [stage for stage in self.stages if any(stage in own for own in visits.values())]
        directory = self.journal.directory
        path, source, variables = (directory / name for name in ("play.yml", "run.yml", "variables.json"))
        write_playbook(path, stages)
        write_source(source, self.fleet, visits, standing.inputs, left_out)
        run = f"{self.journal.id}.{self.waves}"
        write_variables(variables, self.fleet, run, stages, full=self.how.full, reboots=self.how.reboots)
        playbook = Playbook(
            path=path,
            sources=[*self.fleet.sources, source],
            hosts=[*visits, *left_out],
            variables=[self.fleet.stack.path, variables],
            check=self.how.check,
            forks=self.how.forks,
            verbosity=self.how.verbosity,
        )
        watch = Watch(self._event, self.on_text, self._stopping, self._is_lost)
        code, self.interrupted = run_playbook(playbook, directory / "runner", watch)
        self._note_lost()
        was_stopped = self.interrupted or self._is_lost()  # both say so themselves
        self.recorder.end(0 if was_stopped else code)

    def _event(self, event: Mapping[str, Any]) -> None:
        self.recorder.runner_event(self.journal.scrub.value(event))

    def _is_lost(self) -> bool:
        return bool(self.lease and self.lease.lost)

    def _stopping(self) -> None:
        running = {host: {"stage": stage, "task": task} for host, (stage, task) in self.recorder.running.items()}
        self.recorder.send("stopping", running=running)

    def _stop_before(self, waves: Sequence[Sequence[str]]) -> None:
        """The waves that a failure, an interrupt or the canary leaves out: their hosts are as they were."""
        because = next((name for name, host in self.recorder.hosts.items() if host.failure), None)
        for name in (name for wave in waves for name in wave):
            self.recorder.hosts[name].spared = CANARY if self.canary else because or INTERRUPT

    def _named(self, names: Collection[str]) -> list[Host]:
        return [host for host in self.hosts if host.name in names]

    def _possible(self, standing: Standing) -> Standing:
        """Without the stages that need a whole replica, where a host of it has failed."""
        broken = {name for name, host in self.recorder.hosts.items() if host.failure}
        lame = {
            host.name
            for replica in self.fleet.replicas
            if broken & {member.name for member in replica.hosts}
            for host in replica.hosts
        }
        if not lame:
            return standing
        visits = {
            name: tuple(visit for visit in own if name not in lame or visit.stage not in REPLICA_STAGES)
            for name, own in standing.visits.items()
            if name not in broken
        }
        visits = {name: own for name, own in visits.items() if own}
        waves = tuple(tuple(name for name in wave if name in visits) for wave in standing.waves)
        return Standing(standing.receipts, standing.inputs, visits, tuple(wave for wave in waves if wave))

    def _give_up(self, standing: Standing) -> None:
        """What still does not stand after all rounds has failed: a host that never comes to rest is not converged."""
        for name, visits in standing.visits.items():
            visit = visits[0]
            message = (
                f"{visit.stage} does not hold: {visit.why}, again after {ROUNDS} attempts. Something on the host "
                "undoes it; provision drift says what and, where the host knows, who."
            )
            self.recorder.hosts[name].failure = Failure(visit.stage, "verify", message)

    def _result(self, seconds: float) -> Result:
        self._hold_back()
        result = Result(
            run=self.journal.id,
            directory=self.journal.directory,
            log=self.journal.log,
            check=self.how.check,
            hosts=self.recorder.hosts,
            seconds=round(seconds, 1),
            interrupted=self.interrupted,
            running=self.recorder.running,
            error=self.recorder.error,
            trouble=self.journal.trouble,
            canary=None if any(host.failure for host in self._canaries()) else self.canary,
        )
        self._tell(result)
        self.journal.finish(result.exit_code)
        return result

    def _canaries(self) -> list[HostResult]:
        """The hosts of the replica that was changed alone."""
        names = [host.name for replica in self.fleet.replicas if replica.name == self.canary for host in replica.hosts]
        return [self.recorder.hosts[name] for name in names if name in self.recorder.hosts]

    def _tell(self, result: Result) -> None:
        for host in result.hosts.values():
            message = host.failure.message if host.failure else None
            said = {"status": host.status, "counts": host.counts, "message": message, "held_back": list(host.held_back)}
            said |= {"waits": list(host.waits)} if host.waits else {}
            self.recorder.send("host_finished", host=host.name, **said)
        self.recorder.send(
            "run_finished",
            exit_code=result.exit_code,
            seconds=result.seconds,
            interrupted=result.interrupted,
            canary=result.canary,
            error=result.error,
            hosts={host.name: host.status for host in result.hosts.values()},
        )

    def _hold_back(self) -> None:
        """Say which stages a host was spared because another of its replica had failed before them."""
        order = ("reach", *self.stages, "verify")
        for replica in self.fleet.replicas:
            members = [self.recorder.hosts[host.name] for host in replica.hosts if host.name in self.recorder.hosts]
            broken = [(order.index(host.failure.stage), host.name) for host in members if host.failure]
            for host in members if broken else ():
                if not host.failure:
                    first, because = min(broken)
                    visited = {visit.stage for visit in host.visited}
                    held = (stage for stage in order[first + 1 :] if stage in REPLICA_STAGES and stage in visited)
                    host.held_back, host.because = tuple(held), because
