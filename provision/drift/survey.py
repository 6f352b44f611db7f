"""The receipts of many hosts, each verified on its host, in one SSH round trip a host and all hosts at once."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from provision.drift.bundle import ENTRY, directory_of, verifier_text
from provision.drift.receipts import HostReceipts, parsed
from provision.inventory.model import Host
from provision.ssh.call import Answer, Call, call
from provision.ssh.fan import AT_ONCE
from provision.ssh.fit import python_of
from provision.ssh.trouble import Trouble

MEND_S = 1800  # a package may have to be fetched
ANSWER_S = 300  # to read weights again that were touched takes long; a host that hangs is found by its silence
# Where the program has unpacked itself already, what is on standard input is left to whoever called.
SCRIPT = """\
if [ -f {entry} ]; then exec {python} -I -S {entry} {arguments}; fi
exec {python} -I -S - {arguments}
"""


def verify(
    hosts: Sequence[Host],
    stages: Sequence[str] = (),
    *,
    who: bool = True,
    follow: bool = False,
    at_once: int = AT_ONCE,
    on_host: Callable[[HostReceipts], object] = lambda _told: None,
) -> list[HostReceipts]:
    """Verify the receipts of these stages (all without any) on all hosts, in the order given.

    `who` asks the hosts to say who made each change, as far as they know; `follow` to ask the hub what a branch of
    weights means now; `on_host` gets each host's as it comes.
    """
    flags = [flag for flag, asked in (("--who", who), ("--follow", follow)) if asked]
    calls = [_call(host, stages, flags) for host in hosts]
    return _ask(calls, at_once, ANSWER_S, on_host)


def mend(
    hosts: Mapping[str, Sequence[str]], fleet: Sequence[Host], stages: Sequence[str], *, at_once: int = AT_ONCE
) -> list[HostReceipts]:
    """Have hosts set right, by themselves, what differs in some of their stages, as long as nobody notices.

    `hosts` names the stages to be mended, by host of the fleet. Each answers with what it changed, in `mended`, and
    with its receipts of all `stages` as they stand then: in one SSH round trip a host, all at once.
    """
    flags = {name: ["--mend", ",".join(own), "--follow"] for name, own in hosts.items()}
    calls = [_call(host, stages, flags[host.name]) for host in fleet if host.name in hosts]
    return _ask(calls, at_once, MEND_S, lambda _told: None)


def _ask(
    calls: Sequence[Call], at_once: int, timeout: float, on_host: Callable[[HostReceipts], object]
) -> list[HostReceipts]:
    found: dict[str, HostReceipts] = {}

    def take(answer: Answer) -> None:
        receipts = _judged(answer)
        found[answer.host.name] = receipts
        on_host(receipts)

    call(calls, at_once=at_once, timeout=timeout, on_answer=take)
    return [found[one.host.name] for one in calls]


def _call(host: Host, stages: Sequence[str], flags: Sequence[str]) -> Call:
    """What root's shell runs there."""
    arguments = [*(["--stages", ",".join(stages)] if stages else []), *flags]
    entry = shlex.quote(f"{directory_of()}/{ENTRY}")
    script = SCRIPT.format(entry=entry, python=shlex.quote(python_of(host)), arguments=shlex.join(arguments))
    return Call(host, script, verifier_text())


def _judged(answer: Answer) -> HostReceipts:
    """What a host told, or why it told nothing that can be used."""
    fail = partial(HostReceipts, answer.host.name)
    if answer.trouble:
        return fail(trouble=answer.trouble)
    try:
        return parsed(answer.host.name, json.loads(answer.text))
    except (KeyError, TypeError, ValueError):
        said = answer.error or (answer.text.strip().splitlines() or ["nothing"])[-1][:200]
        message = f"its receipts could not be verified: the verifier ended with {answer.code} and said: {said}"
        return fail(
            trouble=Trouble("verifier", message, "Try the host's own copy:  sudo /opt/provision/bin/provision-verify")
        )
