"""Taking replicas out of rotation at the gateways before a run disturbs them, and back in when they stand again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from provision.converge.recorder import Recorder
from provision.converge.result import Failure
from provision.errors import LockedError
from provision.inventory import Fleet, Replica
from provision.serving import gateway
from provision.serving.gateway import RUN, GatewayError


class Rotation:
    """Of one run. Without a gateway in the inventory, or where none runs yet, everything is at once done.

    `hold` keeps other runs from a replica's hosts meanwhile, or raises LockedError if one is at work there.
    """

    def __init__(
        self, fleet: Fleet, recorder: Recorder, run: str, hold: Callable[[Replica], AbstractContextManager[object]]
    ) -> None:
        self._fleet, self._recorder, self._by, self._hold = fleet, recorder, RUN + run, hold
        self._idle: set[str] = set()  # replicas that did not serve when they were kept out

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

    def come_back(self, replicas: Iterable[Replica]) -> bool:
        """Admit replicas that runs have drained, this one or one that died; false if one does not come back."""
        done = [self._back(replica) for replica in self._known(replicas)]
        return all(done)

    def _known(self, replicas: Iterable[Replica]) -> Sequence[Replica]:
        replicas = list(replicas)
        if not replicas or not self._fleet.gateways:
            return ()
        self._seen = gateway.look(self._fleet)
        there = any(not one.missing for one in self._seen)
        return replicas if there else ()

    def _left(self, replica: Replica) -> bool:
        seen = gateway.standing(self._seen, replica.name)
        if seen is None and not any(one.error for one in self._seen if not one.missing):
            return True  # it serves, and no gateway has it yet: nobody is sent there
        if seen and seen.state == "in" and not gateway.others_serve(self._fleet, self._seen, replica):
            return self._failed(replica, "drain", self._alone(replica))
        by = seen.by if seen and seen.by_person else self._by  # a person's drain is waited for, and stays a person's
        try:
            done = gateway.drain(self._fleet, replica, gateway.deadline_of(self._fleet), by=by)
        except GatewayError as error:
            return self._failed(replica, "drain", f"{error} Nothing was changed there.")
        self._idle.discard(replica.name)
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
        if seen is None or not seen.by or seen.by_person:
            return True
        begin = time.monotonic()
        try:
            with nullcontext() if seen.by == self._by else self._hold(replica):
                if replica.name in self._idle:  # it need not serve now: it did not before
                    gateway.let(self._fleet, replica)
                    return True
                gateway.admit(self._fleet, replica, gateway.patience_of(replica))
        except LockedError:
            return True  # the run that drained it is at work there
        except GatewayError as error:
            return self._failed(replica, "admit", str(error))
        self._send("replica_admitted", replica, time.monotonic() - begin)
        return True

    def _send(self, kind: str, replica: Replica, seconds: float, **more: object) -> None:
        self._recorder.send(kind, replica=replica.name, seconds=round(seconds, 1), **more)

    def _failed(self, replica: Replica, task: str, message: str) -> bool:
        for host in (self._recorder.hosts[one.name] for one in replica.hosts if one.name in self._recorder.hosts):
            host.failure = host.failure or Failure("verify", task, message)
        return False
