"""One run at a time on one host, whoever's controller it comes from: a lease that a host grants, and that beats keep.

A controller that is killed loses its leases at once (its sessions end), one that is cut off within a minute. So a
lease that is held is held by a run that lives.
"""

from __future__ import annotations

import contextlib
import select
import shlex
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType

from provision.converge.identity import Holder, holder, identify
from provision.converge.journal import now
from provision.converge.lease_session import LIMIT_S, Session
from provision.errors import LockedError
from provision.inventory import Host
from provision.ssh.fan import each

BEAT_S = 10.0
RETRY_S = 3.0
NAMED = 4  # hosts that a message names
LOOK_MS = 1000


@dataclass
class _Try:
    """What came of asking one host: a session that holds, or who else does, or why there is no answer."""

    host: Host
    session: Session | None = None
    before: Holder | None = None
    boot_id: str = ""
    refused: str | None = None
    trouble: str = ""


class Lease:
    """The right to change these hosts, held while the context lasts.

    `took_over` names the runs that died holding it; `missing` the hosts that hold none for us now, and why (they
    reboot, or do not answer; it is taken again as soon as they do); `lost` those that another run has changed, or
    changes, meanwhile: look at it between two stages, and stop.
    """

    def __init__(self, hosts: Iterable[Host], run: str) -> None:
        # The controller itself is held by its own lock; and two of its names would be one and the same host.
        self._hosts = [host for host in hosts if host.variables.get("ansible_connection") != "local"]
        self._mine = Holder(run, identify(), now(), shlex.join(["provision", *sys.argv[1:]]))
        self.took_over: dict[str, Holder] = {}
        self.missing: dict[str, str] = {}
        self.lost: dict[str, str] = {}
        self._sessions: dict[str, Session] = {}
        self._boots: dict[str, str] = {}
        self._guard = threading.Lock()
        self._ended = threading.Event()

    @property
    def names(self) -> set[str]:
        """Of the hosts that it is for."""
        return {host.name for host in self._hosts}

    def __enter__(self) -> Lease:
        """Take it on all hosts at once. Raises LockedError if one of them is another run's; then none is kept."""
        try:
            tries = each(self._hosts, self._try)
        except BaseException:
            self._release()
            raise
        refused = [tried for tried in tries if tried.refused is not None and not self._is_mine(tried.refused)]
        if refused:
            self._release()
            raise LockedError(_said(refused))
        for tried in tries:
            if tried.before:
                self.took_over[tried.host.name] = tried.before
            if tried.trouble:
                self._retake(tried.host, tried.trouble)
        if self._hosts:
            threading.Thread(target=self._keep, name="lease", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _try(self, host: Host) -> _Try:
        """Ask one host; a session that holds is kept at once, so that whatever happens it is released."""
        session = None
        try:
            session = Session(host, self._mine)
            answer = session.first()
        except (OSError, EOFError) as error:
            if session:
                session.close()
            return _Try(host, trouble=str(error) or type(error).__name__)
        if answer["lease"] != "held":
            session.close()
            return _Try(host, refused=answer["text"])
        tried = _Try(host, session, holder(answer["text"]), answer["boot_id"])
        self._keep_session(tried)
        return tried

    def _keep_session(self, tried: _Try) -> None:
        with self._guard:
            if tried.session and not self._ended.is_set():
                self._sessions[tried.host.name] = tried.session
                self._boots[tried.host.name] = tried.boot_id
                self.missing.pop(tried.host.name, None)
                return
        if tried.session:
            tried.session.close()

    def _keep(self) -> None:
        """The keeper: a beat for every holder, and an eye on those that fall silent."""
        beaten = 0.0
        while not self._ended.is_set():
            with self._guard:
                sessions = list(self._sessions.values())
            if time.monotonic() - beaten >= BEAT_S:
                beaten = time.monotonic()
                for session in sessions:
                    session.beat()
            self._listen(sessions)

    def _listen(self, sessions: Sequence[Session]) -> None:
        poll, by_number = select.poll(), {}
        for session in sessions:
            with contextlib.suppress(OSError, ValueError):  # closed meanwhile
                by_number[session.fileno()] = session
                poll.register(session, select.POLLIN)
        for number, _ in poll.poll(LOOK_MS):
            try:
                by_number[number].said()
            except (OSError, EOFError, ValueError):
                self._gone(by_number[number], "its connection broke")
        for session in sessions:
            if time.monotonic() - session.heard > LIMIT_S:
                self._gone(session, f"it has not answered for {LIMIT_S} s")

    def _gone(self, session: Session, reason: str) -> None:
        with self._guard:
            if self._ended.is_set() or self._sessions.get(session.host.name) is not session:
                return
            del self._sessions[session.host.name]
        session.close()
        self._retake(session.host, reason)

    def _retake(self, host: Host, reason: str) -> None:
        self.missing[host.name] = reason
        threading.Thread(target=self._take_again, args=(host,), name=f"lease of {host.name}", daemon=True).start()

    def _take_again(self, host: Host) -> None:
        """Try until the host answers. Our own last holder there may need its minute to end."""
        boot = self._boots.get(host.name)
        while not self._ended.wait(RETRY_S):
            tried = self._try(host)
            if tried.refused is not None and not self._is_mine(tried.refused):
                self.lost[host.name] = f"{host.name} is being changed {_by(holder(tried.refused))}"
                return
            if tried.session:
                self._judge(host, tried, boot)
                return

    def _judge(self, host: Host, tried: _Try, boot: str | None) -> None:
        """Whether someone had it while we had not; `boot` is the one in which we had it, if ever.

        What a host knew of leases is gone when it has rebooted.
        """
        before = tried.before
        if before and before.run == self._mine.run:
            return
        if boot == tried.boot_id:
            self.lost[host.name] = f"{host.name} was changed {_by(before)} while it was cut off"
        elif boot is None and before:
            self.took_over[host.name] = before

    def _is_mine(self, text: str) -> bool:
        """Whether it is this very run that holds it: under another name of the same host, or cut off from us."""
        found = holder(text)
        return found is not None and (found.run, found.who) == (self._mine.run, self._mine.who)

    def _release(self) -> None:
        with self._guard:
            self._ended.set()
            sessions = list(self._sessions.values())
            self._sessions.clear()
        for session in sessions:
            session.end()
        deadline = time.monotonic() + RETRY_S
        for session in sessions:
            session.close(max(0.0, deadline - time.monotonic()))


def _by(found: Holder | None) -> str:
    return f"by {found}" if found else "by another run, which left no name"


def _said(refused: Sequence[_Try]) -> str:
    """Who holds which hosts."""
    by_holder: dict[str, list[str]] = {}
    for tried in refused:
        by_holder.setdefault(_by(holder(tried.refused or "")), []).append(tried.host.name)
    lines = []
    for who, names in by_holder.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(f"{', '.join(names[:NAMED])}{more} {'is' if len(names) == 1 else 'are'} being changed {who}.")
    wait = f"Wait for it to end; or, if that controller is gone, its lease ends by itself within {LIMIT_S} s."
    return "\n".join([*lines, f"  {wait} Nothing was done."])
