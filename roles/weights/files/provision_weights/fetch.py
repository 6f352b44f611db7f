"""Fetch a model's files: each byte over the uplink once for all hosts, then from host to host along the chain.

The first host that lives reads from the source; every other from the nearest before it that has more than itself, as
the file grows there. All fetch the same files in the same order, so a byte is on its way along the whole chain at once.
What arrives is hashed as it is written. Only the manifest says what is right, never a neighbour.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from provision_weights.errors import LaterError, RefusedError, WeightsError
from provision_weights.files import PART, Growing, is_right, is_sealed, objections, seal
from provision_weights.peers import GoneError, Peer, Peers
from provision_weights.sources import Source, open_source, wanted
from provision_weights.spec import Spec
from provision_weights.state import State

POLL_S = 0.1  # until a neighbour that had no more is asked again
FEW = 1 << 20  # bytes, below which a neighbour has just about as much as this host
GRACE_S = 4.0  # after its start, until a host that is not the first turns to the source itself
CLAIM_S = 5.0  # after the last byte of the source, until another may turn to it
TROUBLE_S = 8.0  # without an answer of the source, after which others are to try
TRIES = 6  # of one file
STRIKES = 20  # times a neighbour may lack what it says it has


class Meter:
    """Holds the rate of all streams together below what is asked for."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.lock, self.free_at = spec, threading.Lock(), 0.0

    def limit(self) -> int:
        """Bytes a second; 0 for no limit."""
        serving = self.spec.serving_rate if Path(self.spec.serving_flag).exists() else 0
        limits = [limit for limit in (self.spec.rate, serving) if limit]
        return min(limits, default=0)

    def take(self, count: int) -> None:
        """Wait until so many bytes are allowed."""
        if limit := self.limit():
            with self.lock:
                begin = max(time.monotonic(), self.free_at)
                self.free_at = begin + count / limit
            time.sleep(max(0.0, begin - time.monotonic()))


class Uplink:
    """Whether this host uses the source, and what that answered."""

    def __init__(self, spec: Spec, state: State) -> None:
        self.state, self.allowed = state, spec.uplink
        self.used, self.answered = -1e9, time.monotonic()
        self.refused = ""
        self._lock = threading.Lock()
        self._source: Source | None = None
        self.spec = spec

    def source(self) -> Source:
        with self._lock:
            if self._source is None:
                self._source = open_source(self.spec)
            return self._source

    @property
    def claims(self) -> bool:
        return time.monotonic() - self.used < CLAIM_S and not self.refused

    def use(self) -> None:
        """Tell the others that this host takes it upon itself."""
        if not self.claims:
            self.answered = time.monotonic()  # how long it does not answer counts from here
        self.used = time.monotonic()
        self.tell()

    def works(self) -> None:
        """It sent something."""
        self.used = self.answered = time.monotonic()
        self.tell("")

    def refuse(self, message: str) -> None:
        """The source said no: others are to try, who may have a token or another way."""
        self.refused, self.allowed = message, False
        self.tell(message)

    def fails(self, reason: str) -> None:
        """It does not answer: for a while that is nothing, then another host is to try."""
        self.used = time.monotonic()
        if time.monotonic() - self.answered > TROUBLE_S:
            self.tell(reason)

    def tell(self, trouble: str | None = None) -> None:
        """Let the others know at once; without `trouble`, that stays as it was."""
        told = {"uplink": self.claims, "may_uplink": self.allowed}
        told["trouble"] = self.state.flags["trouble"] if trouble is None else trouble
        if any(self.state.flags.get(name) != value for name, value in told.items()):
            self.state.flags.update(told)
            self.state.write()


class Fetcher:
    """One host's part in the transfer."""

    def __init__(self, spec: Spec) -> None:
        self.spec, self.state = spec, State(spec)
        self.files: dict[str, dict[str, Any]] = {}
        self.peers = Peers(spec, lambda: self.files)
        self.uplink = Uplink(spec, self.state)
        self.meter = Meter(spec)
        self.begin = time.monotonic()
        self.progress = time.monotonic()  # when the last byte came, from wherever
        self.stop = threading.Event()

    def run(self) -> None:
        """Fetch all that is missing; afterwards the partial directory and the place together hold all of it."""
        self.spec.partial.mkdir(parents=True, exist_ok=True)
        with (self.spec.base / f".{self.spec.commit}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.state.start()
            try:
                self.peers.start()
                self._run()
            except BaseException as error:
                self.state.finish(failed=explain(error, self.spec))
                raise
            finally:
                self.peers.stop()
            with suppress(OSError):
                self.spec.partial.rmdir()  # all was in place already, as at every boot
            self.state.finish(done=True, reason="")

    def _run(self) -> None:
        self.files = self.manifest()
        self.state.total = sum(entry["size"] for entry in self.files.values())
        for name in self.files:
            self.note(name)
        missing = [name for name in self.files if name not in self.state.verified]
        self.expect_room(missing)
        with ThreadPoolExecutor(max(1, self.spec.streams)) as pool:
            futures = [pool.submit(self.fetch, name) for name in missing]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            self.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for future in done:
                future.result()
        self.sign_off()

    def note(self, name: str) -> None:
        """A file that is there and sealed counts as verified."""
        entry = self.files[name]
        if any(is_sealed(folder / name, entry) for folder in (self.spec.place, self.spec.partial)):
            self.state.verified[name] = entry["size"]
            (self.spec.partial / f"{name}{PART}").unlink(missing_ok=True)
        else:
            with suppress(OSError):
                self.state.sizes[name] = (self.spec.partial / f"{name}{PART}").stat().st_size

    def manifest(self) -> dict[str, dict[str, Any]]:
        """What belongs to the commit: as was found out before, as the source says, or as a neighbour does."""
        for path in (self.spec.manifest, self.partial_manifest):
            with suppress(OSError, ValueError, KeyError):
                return wanted(json.loads(path.read_text(encoding="utf-8"))["files"], ())
        while True:
            try:
                files = self.asked_manifest()
            except LaterError as error:
                self.give_up_after(error.reason)
                self.wait("the list of files", error)
                continue
            told = {"repo": self.spec.repo, "commit": self.spec.commit, "exclude": list(self.spec.exclude)}
            text = json.dumps({**told, "files": files}, indent=1, sort_keys=True) + "\n"
            new = self.partial_manifest.with_name(f".{self.partial_manifest.name}.new")
            new.write_text(text, encoding="utf-8")
            os.chmod(new, 0o644)
            os.replace(new, self.partial_manifest)
            self.state.reasons.pop("the list of files", None)
            return files

    @property
    def partial_manifest(self) -> Path:
        return self.spec.partial / ".manifest.json"

    def asked_manifest(self) -> dict[str, dict[str, Any]]:
        """Ask the source; a host that must not, or gets no answer, takes the list of a neighbour, and says so."""
        reason: Exception = LaterError("this host may not ask the source itself", 1)
        if self.uplink.allowed:
            try:
                return wanted(self.uplink.source().files(), self.spec.exclude)
            except LaterError as error:
                reason = error
            except RefusedError as error:
                reason = error
                self.uplink.refuse(str(error))
        text, whose = self.peers.manifest()
        if text:
            self.state.complain(f"The list of files is that of {whose}: {reason}.")
            return wanted(json.loads(text)["files"], self.spec.exclude)
        if self.uplink.refused and not self.others_may():
            raise RefusedError(self.uplink.refused)
        raise reason if isinstance(reason, LaterError) else LaterError(str(reason), 1)

    def others_may(self) -> bool:
        """Whether another host lives that could still get it; just after the start, one may yet come."""
        young = time.monotonic() - self.begin < GRACE_S and bool(self.peers.all)
        return young or any(peer.may_claim for peer in self.peers.all)

    def expect_room(self, missing: list[str]) -> None:
        """Refuse to start what cannot fit on the disk."""
        there = sum(self.state.sizes.get(name, 0) for name in missing)
        needed = sum(self.files[name]["size"] for name in missing) - there + (self.spec.margin if missing else 0)
        free = shutil.disk_usage(self.spec.base).free
        if free < needed:
            raise RefusedError(
                f"{self.spec.base} has {free / 1e9:.1f} GB free, and {self.spec.repo} needs {needed / 1e9:.1f} GB more "
                "there. Remove old models (provision weights gc), or set weights_dir to a larger disk."
            )

    def fetch(self, name: str) -> None:
        """Fetch one file until it is right."""
        path, entry, lied = self.spec.partial / name, self.files[name], set[str]()
        if path.exists() and is_right(path, entry):
            seal(path)
            self.note(name)
            return
        is_doubtful = False
        for _ in range(TRIES):
            growing = Growing(path, entry)
            try:
                givers = self.fill(name, growing, lied, is_doubtful)
                if not growing.is_whole:  # told to stop
                    return
                right = growing.finish()
            finally:
                growing.close()
            if right:
                self.state.sizes.pop(name, None)
                self.state.verified[name] = entry["size"]
                return
            self.state.sizes[name] = 0
            self.blame(name, givers, lied)
            is_doubtful = True
        raise WeightsError(
            f"{name} of {self.spec.repo} came {TRIES} times with another content than commit {self.spec.commit} has. "
            f"{' '.join(self.state.complaints[-2:])} Is a disk, a memory module or a proxy on the way at fault?"
        )

    def blame(self, name: str, givers: dict[str, bool], lied: set[str]) -> None:
        """Name who gave what is not right; who alone gave it, and says that it is verified, is not asked again."""
        named, commit = " and ".join(givers), self.spec.commit[:12]
        self.state.complain(f"{name}, from {named}, is not what commit {commit} has: fetched again.")
        if len(givers) == 1 and all(givers.values()):
            if named in lied:  # only the source can be asked again
                raise WeightsError(
                    f"{named} sent {name} twice with another content than it announces for commit {commit}. Is a "
                    "proxy or mirror between (weights_endpoint, site_https_proxy) at fault?"
                )
            lied.add(named)

    def fill(self, name: str, growing: Growing, lied: set[str], is_doubtful: bool) -> dict[str, bool]:
        """Read until the file is whole; who gave some of it, and whether it had verified that."""
        givers = {"what was here before": False} if growing.size else {}
        strikes: dict[str, int] = {}
        while not growing.is_whole and not self.stop.is_set():
            peer = self.choose(name, growing.size, lied, is_doubtful)
            try:
                if self.got_some(peer, name, growing, givers, lied, strikes):
                    continue
            except GoneError as error:
                if not self.stop.is_set():
                    print(f"{peer.address if peer else ''} broke off in {name}: {error}", flush=True)
                continue
            except LaterError as error:
                self.uplink.fails(error.reason)
                self.give_up_after(error.reason)
                self.wait(name, error)
                continue
            except RefusedError as error:
                self.uplink.refuse(str(error))
            self.expect_hope(name)
            time.sleep(POLL_S)
        self.state.reasons.pop(name, None)
        return givers

    def got_some(
        self,
        peer: Peer | None,
        name: str,
        growing: Growing,
        givers: dict[str, bool],
        lied: set[str],
        strikes: dict[str, int],
    ) -> bool:
        """Read from a neighbour, or from the source where that is for this host to do; whether anything came."""
        if peer:
            count = self.read_peer(peer, name, growing)
            if count:
                givers[peer.address] = givers.get(peer.address, True) and peer.is_done(name)
                time.sleep(POLL_S if count < FEW else 0)
                return True
            strikes[peer.address] = strikes.get(peer.address, 0) + peer.is_done(name)
            if strikes[peer.address] > STRIKES:
                lied.add(peer.address)
        elif self.may_ask(lied):
            self.read_source(name, growing)
            givers[self.uplink.source().name] = True
            return True
        return False

    def choose(self, name: str, offset: int, lied: set[str], is_doubtful: bool) -> Peer | None:
        """Whom to read from now; None for the source, or for nobody (`may_ask` tells)."""
        good = [peer for peer in self.peers.all if peer.lives and peer.address not in lied]
        if is_doubtful:
            good = [peer for peer in good if peer.is_done(name)]
        before = [peer for peer in reversed(good) if peer.number < self.peers.me]
        behind = [peer for peer in good if peer.number > self.peers.me]
        first = self.first_claimer()
        # Who has as much as this host will soon have more, where another host than this one sees to that.
        is_cared_for = isinstance(first, Peer) or (first is None and any(peer.may_claim for peer in before))
        for peer in before:
            if peer.has(name) > offset or (peer.has(name) == offset and is_cared_for):
                return peer
        for peer in behind:
            if peer.has(name) > offset:
                return peer
        if isinstance(first, Peer) and first in good and first.has(name) >= offset:
            return first
        return None

    def first_claimer(self) -> Peer | Fetcher | None:
        """Who uses the uplink now, the first in the chain if several do; this object stands for this host."""
        claimers = [peer for peer in self.peers.all if peer.claims]
        before = [peer for peer in claimers if peer.number < self.peers.me]
        if before:
            return before[0]
        if self.uplink.claims and not self.state.flags["trouble"]:
            return self
        return claimers[0] if claimers else None

    def may_ask(self, lied: set[str]) -> bool:
        """Whether it is for this host to ask the source."""
        if not self.uplink.allowed:
            return False
        first = self.first_claimer()
        if first is self:
            return True
        if isinstance(first, Peer) and first.address not in lied:
            return False
        if any(peer.may_claim and peer.address not in lied for peer in self.peers.before):
            return False
        return not self.peers.before or time.monotonic() - self.begin > GRACE_S

    def read_peer(self, peer: Peer, name: str, growing: Growing) -> int:
        """Append what a neighbour has beyond what is here; how many bytes that was."""
        begin = growing.size
        for piece in self.peers.read(peer, name, begin, self.files[name]["size"]):
            self.append(name, growing, piece, peer.address)
            if self.stop.is_set():
                break
        return growing.size - begin

    def read_source(self, name: str, growing: Growing) -> None:
        """Append what the source has, until the file is whole or an earlier host uses the uplink."""
        self.uplink.use()
        source = self.uplink.source()
        blocks = source.read(name, growing.size)
        try:
            for block in blocks:
                self.uplink.works()
                self.append(name, growing, memoryview(block), source.name)
                if growing.is_whole or self.stop.is_set() or self.first_claimer() is not self:
                    return
        finally:
            getattr(blocks, "close", lambda: None)()
        if not growing.is_whole:
            raise LaterError(f"{source.name} ended {name} after {growing.size} of {self.files[name]['size']} bytes", 1)

    def append(self, name: str, growing: Growing, piece: memoryview, source: str) -> None:
        self.meter.take(len(piece))
        growing.write(piece)
        self.state.got(source, len(piece))
        self.state.sizes[name] = growing.size
        self.state.reasons.pop(name, None)
        self.progress = time.monotonic()

    def wait(self, name: str, error: LaterError) -> None:
        """Wait as long as the source asks, and say why; but no longer than until another host has more."""
        if self.state.reasons.get(name) != error.reason:
            print(f"Waiting: {error.reason}.", flush=True)
        self.state.reasons[name] = error.reason
        until = time.monotonic() + error.seconds
        while time.monotonic() < until and not self.stop.wait(min(0.5, error.seconds)):
            self.uplink.used = time.monotonic() if self.uplink.claims else self.uplink.used
            if any(peer.lives and peer.has(name) > self.state.sizes.get(name, 0) for peer in self.peers.all):
                return

    def expect_hope(self, name: str) -> None:
        """Give up where the source refused, and nobody is left who could have it or get it."""
        here = self.state.sizes.get(name, 0)
        is_left = self.others_may() or any(
            peer.claims or (peer.lives and peer.has(name) > here) for peer in self.peers.all
        )
        if self.uplink.refused and not is_left:
            raise RefusedError(self.uplink.refused)
        self.give_up_after("no other host of the chain gives any more")

    def give_up_after(self, reason: str) -> None:
        """End what has not received a byte for too long."""
        seconds = time.monotonic() - self.progress
        if seconds > self.spec.patience:
            raise RefusedError(
                f"Not a byte of {self.spec.repo} has come for {seconds:.0f} s: {reason}. What is here is kept; "
                "run again when it is mended."
            )

    def sign_off(self) -> None:
        """The indexes of safetensors must agree with what was verified."""
        folder = self.spec.partial
        if self.spec.place.exists() or any(not (folder / name).exists() for name in self.files):
            return  # a repair: what was put in place before agreed
        wrong = objections(folder, self.files)
        if wrong:
            raise RefusedError(
                f"{self.spec.repo} at {self.spec.commit[:12]} would not load: {'; '.join(wrong[:3])}. The commit "
                "itself, or weights_exclude, is at fault; nothing was put in place."
            )


def explain(error: BaseException, spec: Spec) -> str:
    """Why it ended, for a person."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk of {spec.base} is full. What was fetched is kept; free some room (provision weights gc), or set "
            "weights_dir to a larger disk, and run again."
        )
    return str(error) or type(error).__name__
