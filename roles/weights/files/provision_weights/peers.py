"""The other hosts of the chain: who lives, what each has, and reading a file from one as it grows.

Each host's nginx serves its files, whole or growing, and `state.json`, which its fetcher writes twice a second.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from provision_weights.spec import Spec

SILENCE_S = 5.0  # without a sign of life, after which a host counts as dead
POLL_S = 0.5
ASK_S = 2.0  # that a host has to say how far it is
ASK_AT_ONCE = 16
NEAR = 8  # hosts before this one that are watched; with the first ones, enough to find another when one dies
PIECE = 1 << 28  # bytes asked for at a time: what limits a transfer is looked at anew with each
BLOCK = 1 << 20


class GoneError(Exception):
    """A host does not answer, or broke off."""


class Connection:
    """A kept connection to one nginx, which asks for ranges of files: no more of HTTP than that takes."""

    def __init__(self, address: str, spec: Spec, timeout: float = SILENCE_S) -> None:
        self.address, self.port, self.timeout = address, spec.port, timeout
        self.own = (spec.host, 0) if spec.host else None  # the address by which the other host lets this one in
        self.socket: socket.socket | None = None
        self.rest = b""

    def get(self, path: str, first: int | None = None, last: int | None = None) -> tuple[int, dict[str, str]]:
        """Ask; status and headers. What follows is to be read by `body` before anything else is asked."""
        for fresh in (self.socket is None, True):  # a kept connection may have been closed meanwhile
            try:
                self._send(path, first, last)
                return self._head()
            except OSError as error:
                self.close()
                if fresh:
                    raise GoneError(str(error)) from error
        raise AssertionError("unreachable")

    def _send(self, path: str, first: int | None, last: int | None) -> None:
        if self.socket is None:
            self.socket = socket.create_connection((self.address, self.port), self.timeout, self.own)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.rest = b""
        wanted = f"Range: bytes={first}-{last}\r\n" if first is not None else ""
        host = f"[{self.address}]" if ":" in self.address else self.address
        self.socket.sendall(f"GET {urllib.parse.quote(path)} HTTP/1.1\r\nHost: {host}\r\n{wanted}\r\n".encode())

    def _head(self) -> tuple[int, dict[str, str]]:
        assert self.socket  # noqa: S101 - for the type checker
        while b"\r\n\r\n" not in self.rest:
            more = self.socket.recv(1 << 16)
            if not more:
                raise ConnectionResetError("it closed the connection")
            self.rest += more
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return int(first.split()[1]), headers

    def body(self, headers: dict[str, str]) -> Iterator[memoryview]:
        """What follows the headers."""
        left = int(headers.get("content-length", "0"))
        block = memoryview(bytearray(min(BLOCK, max(left, 1))))
        try:
            while left > 0:
                if self.rest:
                    piece = memoryview(self.rest[:left])
                    self.rest = self.rest[left:]
                else:
                    assert self.socket  # noqa: S101 - as above
                    count = self.socket.recv_into(block, min(left, len(block)))
                    if not count:
                        raise ConnectionResetError("it broke off")
                    piece = block[:count]
                left -= len(piece)
                yield piece
        except OSError as error:
            raise GoneError(str(error)) from error
        finally:
            if left > 0:  # not read to its end: what is still to come would be taken for the next answer
                self.close()

    def close(self) -> None:
        if self.socket:
            self.socket.close()
        self.socket, self.rest = None, b""


@dataclass
class Peer:
    """Another host, as far as this one knows it."""

    address: str
    number: int  # its place in the chain
    state: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)  # bytes of each file that it is known to have
    seen: float = -1e9  # when it last gave a sign of life

    @property
    def lives(self) -> bool:
        return time.monotonic() - self.seen < SILENCE_S

    @property
    def claims(self) -> bool:
        """Whether it uses the uplink, and gets something by that."""
        return self.lives and bool(self.state.get("uplink")) and not self.state.get("trouble")

    @property
    def may_claim(self) -> bool:
        """Whether it will use the uplink when it needs more."""
        return self.lives and bool(self.state.get("may_uplink")) and not self.state.get("trouble")

    def has(self, name: str) -> int:
        return self.sizes.get(name, 0)

    def is_done(self, name: str) -> bool:
        """Whether it says that it has verified this file."""
        return bool(self.state.get("done")) or name in self.state.get("verified", ())


class Peers:
    """All others of the chain; a thread asks them how far they are."""

    def __init__(self, spec: Spec, files: Callable[[], dict[str, Any]]) -> None:
        self.spec, self.files = spec, files
        self.me = spec.place_in_chain
        self.all = [Peer(address, number) for number, address in enumerate(spec.chain) if address != spec.host]
        self._local = threading.local()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._asking = {peer.address: Connection(peer.address, spec, timeout=ASK_S) for peer in self.all}
        self._round = 0

    @property
    def before(self) -> list[Peer]:
        """Those before this host, the nearest first."""
        return [peer for peer in reversed(self.all) if peer.number < self.me]

    @property
    def behind(self) -> list[Peer]:
        """Those behind this host, the nearest first."""
        return [peer for peer in self.all if peer.number > self.me]

    def start(self) -> None:
        """Ask all once, then go on asking."""
        with ThreadPoolExecutor(ASK_AT_ONCE) as pool:
            list(pool.map(self._ask, self.all))
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _watch(self) -> None:
        with ThreadPoolExecutor(ASK_AT_ONCE) as pool:
            while not self._stop.wait(POLL_S):
                self._round += 1
                list(pool.map(self._ask, self._watched()))

    def _watched(self) -> list[Peer]:
        """The near ones always; the others in turn, so that a chain of hundreds costs no more than one of twenty."""
        near = self.before[:NEAR] + self.behind[:2] + self.all[:2]
        rest = [peer for peer in self.all if peer not in near]
        turn = rest[self._round * NEAR % max(len(rest), 1) :][:NEAR]
        return [peer for number, peer in enumerate(near) if peer not in near[:number]] + turn

    def _ask(self, peer: Peer) -> None:
        connection = self._asking[peer.address]
        with contextlib.suppress(GoneError, ValueError, KeyError, TypeError):
            status, headers = connection.get("/state.json")
            told = json.loads(b"".join(bytes(piece) for piece in connection.body(headers)))
            if status == 200 and told["commit"] == self.spec.commit and told["repo"] == self.spec.repo:
                self._take(peer, told)

    def _take(self, peer: Peer, told: dict[str, Any]) -> None:
        """A state that is not the last one seen is a sign of life; one who is done needs to give none."""
        is_same_run = told["started"] == peer.state.get("started")
        is_new = not is_same_run or told["beat"] != peer.state["beat"]
        told["verified"] = frozenset(told.get("verified", ()))
        peer.state = told
        for name, entry in self.files().items():
            known = entry["size"] if peer.is_done(name) else told.get("sizes", {}).get(name, 0)
            # What was read from it since is newer than what it last told.
            peer.sizes[name] = max(peer.has(name), known) if is_same_run else known
        if (is_new and not told.get("failed")) or told.get("done"):
            peer.seen = time.monotonic()

    def manifest(self) -> tuple[str, str]:
        """The manifest as another host has it, and whose it is; empty if none has it."""
        for peer in self.before + self.behind:
            with contextlib.suppress(GoneError):
                connection = self._connection(peer)
                status, headers = connection.get(f"{self._folder()}.json")
                text = b"".join(bytes(piece) for piece in connection.body(headers)).decode("utf-8")
                if status == 200:
                    return text, peer.address
        return "", ""

    def _folder(self) -> str:
        return f"/{self.spec.repo.replace('/', '--')}/{self.spec.commit}"

    def _connection(self, peer: Peer) -> Connection:
        """This thread's own connection to a host."""
        kept: dict[str, Connection] = self._local.__dict__.setdefault("kept", {})
        return kept.setdefault(peer.address, Connection(peer.address, self.spec))

    def read(self, peer: Peer, name: str, offset: int, size: int) -> Iterator[memoryview]:
        """What a host has of a file beyond the offset now; nothing if it has no more."""
        connection = self._connection(peer)
        try:
            last = min(size, offset + PIECE) - 1
            status, headers = connection.get(f"{self._folder()}/{name}", offset, last)
            if status == 206:
                for piece in connection.body(headers):
                    offset += len(piece)
                    peer.sizes[name] = max(peer.has(name), offset)
                    peer.seen = time.monotonic()
                    yield piece
                return
            for _ in connection.body(headers):
                pass
        except GoneError:
            peer.seen = -1e9  # until it tells how far it is again
            peer.sizes[name] = 0
            raise
        is_empty = status == 200 and headers.get("content-length") == "0"  # nginx has no range of a file without a byte
        if status not in (404, 416) and not is_empty:
            peer.seen = -1e9
            raise GoneError(f"it answers {status}")
        said = re.fullmatch(r"bytes \*/(\d+)", headers.get("content-range", ""))
        peer.sizes[name] = int(said[1]) if said else 0
