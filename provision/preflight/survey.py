"""One look at every host: all at once, one SSH round trip each."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass

from provision.inventory.model import Fleet, Host, Replica
from provision.plan.decode import decode
from provision.preflight.bundle import program
from provision.preflight.facts import Facts
from provision.preflight.request import request_of
from provision.ssh.call import Answer, Call, call
from provision.ssh.fan import each
from provision.ssh.fit import python_of
from provision.ssh.trouble import Trouble

ANSWER_S = 110  # the program itself ends after 75


@dataclass(frozen=True)
class Sight:
    """What one host told; or the trouble that kept it from telling.

    `ahead`: its clock is surely between so many seconds ahead of the controller's, by when it was asked and answered.
    """

    host: Host
    replica: Replica
    facts: Facts | None = None
    trouble: Trouble | None = None
    ahead: tuple[float, float] = (0.0, 0.0)
    seconds: float = 0.0


def look_at(fleet: Fleet, hosts: Sequence[Host]) -> list[Sight]:
    """Look at these hosts; one that does not answer holds up none."""
    pairs = [(host, replica) for host in hosts if (replica := fleet.replica_of(host.name))]
    return each(pairs, lambda pair: _look(*pair))


def _look(host: Host, replica: Replica) -> Sight:
    text = program(json.dumps(request_of(host, replica)))
    begin = time.time()
    (answer,) = call([Call(host, f"exec {shlex.quote(python_of(host))} -I -S -", text)], timeout=ANSWER_S)
    return sight(answer, replica, begin, time.time())


def sight(answer: Answer, replica: Replica, begin: float, end: float) -> Sight:
    """What an answer says, that was asked for at `begin` and there at `end`, by the controller's clock."""
    if answer.trouble:
        return Sight(answer.host, replica, trouble=answer.trouble, seconds=end - begin)
    try:
        facts: Facts = decode(json.loads(answer.text), Facts)
    except ValueError as error:
        said = answer.error or str(error)
        message = f"it could not be looked at: the program ended with {answer.code} and said: {said}"
        return Sight(answer.host, replica, trouble=Trouble("look", message, "Try again; see there:  dmesg | tail"))
    return Sight(answer.host, replica, facts, None, (facts.end - end, facts.begin - begin), end - begin)
