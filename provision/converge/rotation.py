"""Taking replicas out of rotation at the gateways before a run disturbs them, and back in when they stand again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from provision.converge.recorder import Recorder
from provision.converge.result import Failure, HostResult
from provision.errors import LockedError
from provision.inventory import Fleet, Replica
from provision.serving import gateway
from provision.serving.gateway import RUN, Gateway, GatewayError


class Rotation:
    """Of one run. Without a gateway in the inventory, or where none runs yet, everything is at once done.

    `hold` keeps other runs from a replica's hosts meanwhile, or raises LockedError if one is at work there. `gates`:
    the run brings what it disturbs through all that decides whether it may serve. `stands` asks a replica whether it
    may; so one that another run left drained, after a wrong answer or a failed proof, is not admitted for generating.
    """

    def __init__(
        self,
        fleet: Fleet,
        recorder: Recorder,
        run: str,
        hold: Callable[[Replica], AbstractContextManager[object]],
        gates: bool,
        stands: Callable[[Replica], bool],
    ) -> None:
        self._fleet, self._recorder, self._by, self._hold = fleet, recorder, RUN + run, hold
        self._gates, self._stands = gates, stands
        self._idle: set[str] = set()  # replicas that did not serve when they were kept out
        self._out: set[str] = set()  # those that this run took out, and has not brought back
        self._seen: list[Gateway] = []  # by the last look

    def leave(self, replicas: Iterable[Replica]) -> bool:
        """Drain replicas; false if one could not be, which has then failed. What people drained is left alone."""
        done = [self._left(replica) for replica in self._known(replicas)]  # every one, whatever becomes of the first
        return all(done)

    def keep_out(self, replicas: Iterable[Replica]) -> None:
        """Have replicas that do not serve stay so while they are changed: systemd may revive them at any moment."""
        for replica in self._known(replicas):
            seen = gateway.standing(self._seen, replica.name)
            if seen and not seen.by and (seen.state != "in" or gateway.others_serve(self._fleet, self._seen, replica)):
                self._idle.add(replica.name)
                wait = gateway.deadline_of(self._fleet) if seen.state == "in" else 0.0  # else what it had is lost
                with suppress(GatewayError):  # nobody is served there, so it may be changed all the same
                    gateway.drain(self._fleet, replica, wait, by=self._by)
                    self._out.add(replica.name)

    def come_back(self, replicas: Iterable[Replica]) -> bool:
        """Admit replicas that runs have drained, this one or one that died; false if one does not come back."""
        done = [self._back(replica) for replica in self._known(replicas)]
        return all(done)

    def tell_all(self) -> None:
        """Have gateways that know nothing of a drain, since they are new or were installed anew, hold it as well."""
        if self._fleet.gateways and not self._seen:  # a run that is about gateways alone
            self._seen = gateway.look(self._fleet)
        if not any(gateway.unaware(self._seen, replica) for replica in self._fleet.replicas):
            return
        for replica in self._known(self._fleet.replicas):
            seen = gateway.standing(self._seen, replica.name)
            if seen and gateway.unaware(self._seen, replica):
                with suppress(LockedError, GatewayError), nullcontext() if seen.by_person else self._hold(replica):
                    gateway.spread(self._seen, replica, seen.by)

    def _known(self, replicas: Iterable[Replica]) -> Sequence[Replica]:
        replicas = list(replicas)
        if not replicas or not self._fleet.gateways:
            return ()
        # Who was taken out must come back: a gateway that is silent for a moment is asked again.
        waits = any(replica.name in self._out for replica in replicas)
        self._seen = gateway.look_again(self._fleet) if waits else gateway.look(self._fleet)
        there = any(not one.missing for one in self._seen)
        return replicas if there else ()

    def _left(self, replica: Replica) -> bool:
        seen = gateway.standing(self._seen, replica.name)
        if seen is None and not any(one.error for one in self._seen if not one.missing):
            return True  # it serves, and no gateway has it yet: nobody is sent there
        if seen and seen.state == "in" and not gateway.others_serve(self._fleet, self._seen, replica):
            return self._failed(replica, "drain", self._alone(replica))
        # A person's drain is waited for, and stays a person's; another run's stays that one's if this one has no gates.
        is_others = seen and seen.by and (seen.by_person or not self._gates)
        by = seen.by if seen and is_others else self._by
        try:
            done = gateway.drain(self._fleet, replica, gateway.deadline_of(self._fleet), by=by)
        except GatewayError as error:
            return self._failed(replica, "drain", f"{error} Nothing was changed there.")
        self._idle.discard(replica.name)
        if by == self._by:
            self._out.add(replica.name)
        self._send("replica_drained", replica, done.seconds, in_flight=done.in_flight)
        return True

    def _alone(self, replica: Replica) -> str:
        return (
            f"{replica.name} is the only replica in rotation, so it was not drained, and nothing was changed there.\n"
            f"  Why the others are not:     provision status {self._fleet.path}\n"
            f"  To change it all the same:  provision serve drain {self._fleet.path} {replica.name}  and run again"
        )

    def _back(self, replica: Replica) -> bool:
        seen = gateway.standing(self._seen, replica.name)
        silent = next((one for one in self._seen if one.error and not one.missing), None)
        if seen is None and silent and replica.name in self._out:
            return self._failed(replica, "admit", f"Gateway {silent.host.name}: {silent.error} {self._later()}")
        if seen is None or not seen.by or seen.by_person:
            self._out.discard(replica.name)
            return True
        try:
            with nullcontext() if seen.by == self._by else self._hold(replica):
                self._admit(replica, seen.by)
        except LockedError:
            return True  # the run that drained it is at work there
        except GatewayError as error:
            return self._failed(replica, "admit", str(error))
        return True

    def _admit(self, replica: Replica, by: str) -> None:
        """Admit what this run has gated, or what stands; leave the rest to a run that brings it there."""
        hosts = self._hosts(replica)
        if by != self._by and not self._stands(replica):
            if not any(host.stays_out for host in hosts):
                self._recorder.send("replica_stays_out", replica=replica.name, by=by)
            for host in hosts:
                host.stays_out = by
            return
        begin = time.monotonic()
        if replica.name in self._idle:  # it need not serve now: it did not before
            gateway.let(self._fleet, replica)
        else:
            gateway.admit(self._fleet, replica, gateway.patience_of(replica))
            self._send("replica_admitted", replica, time.monotonic() - begin)
        self._out.discard(replica.name)
        for host in hosts:
            host.stays_out = ""

    def _later(self) -> str:
        return f"So it stays drained. The next run admits it:  provision bootstrap {self._fleet.path}"

    def _hosts(self, replica: Replica) -> list[HostResult]:
        return [self._recorder.hosts[one.name] for one in replica.hosts if one.name in self._recorder.hosts]

    def _send(self, kind: str, replica: Replica, seconds: float, **more: object) -> None:
        self._recorder.send(kind, replica=replica.name, seconds=round(seconds, 1), **more)

    def _failed(self, replica: Replica, task: str, message: str) -> bool:
        for host in self._hosts(replica):
            host.failure = host.failure or Failure("verify", task, message)
        return False
