#!/usr/bin/python3
"""Says by HTTP whether the engine of this replica makes progress: 200 or 503, with the reason.

vLLM's own /health and /v1/models say 200 while its engine is dead or hangs. So what counts is tokens: those that the
counters show while requests run, and one asked for every few seconds while none do. An engine that has much to do is
never asked for more, and counts as well as long as its counters move. VLLM_API_KEY is the key, if vLLM wants one.

When it has made none for much longer, this ends with 70, whereupon systemd starts the engine anew. So it does when a
host that belongs to the engine is gone or began anew: without Ray, vLLM itself would not notice (see follow.py). A host
that says nothing for a few seconds may be back at once, but whoever asked meanwhile would wait in vain: 503 until then.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

POLL_S = 0.5
COUNT_S = 2  # between two readings of the counters, which cost vLLM some milliseconds
CANARY_S = 30  # between two questions to an engine that has nothing to do; workers spin for a second after each
RETRY_S = 2  # after one that failed
LOOK_S = 5  # that /metrics has to answer
MISSED_S = 3  # without a word of a host of the engine, after which no request is sent there
SILENCE_S = 15  # after which it is gone
HANGS = 70  # the exit status by which the unit knows
METRIC = re.compile(r"^vllm:(num_requests_running|num_requests_waiting|prompt_tokens_total|generation_tokens_total)\b")
ENGINE = re.compile(r'\bengine="([^"]*)"')
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Judge:
    """What is known of the engine, and what follows. Times are of a monotonic clock."""

    def __init__(self, stall_s: float) -> None:
        self.stall_s = stall_s
        self.gone = "it was not asked yet"  # why vLLM takes no connection; empty if it does
        self.failed = ""  # what it last answered instead of a token
        self.tokens: dict[str, float] = {}  # of each engine behind the API
        self.fine: dict[str, float] = {}  # when each last made progress, or had nothing to do
        self.busy = False
        self.proven = float("-inf")  # when any last made progress
        self.counts = False  # whether it has counters to judge by
        self.looked = 0.0
        self.quiet = 0.0  # seconds for which it was seen to be there and to do nothing
        self.lock = threading.Lock()

    def saw(self, now: float, engines: dict[str, dict[str, float]]) -> None:
        """The counters of each engine, as vLLM tells them. One that stands still is told by none of the others."""
        with self.lock:
            self.gone, self.busy, moved = "", False, set()
            for name, values in engines.items():
                tokens = values.get("prompt_tokens_total", 0.0) + values.get("generation_tokens_total", 0.0)
                busy = values.get("num_requests_running", 0) + values.get("num_requests_waiting", 0) > 0
                if 0 <= self.tokens.get(name, -1.0) < tokens:
                    moved.add(name)
                if name in moved or not busy or name not in self.fine:
                    self.fine[name] = now
                self.tokens[name], self.busy = tokens, self.busy or busy
            self.counts = any("generation_tokens_total" in values for values in engines.values())
            if moved:
                self.proven, self.failed = now, ""
                if all(self.fine[name] == now for name in engines):
                    self.quiet = 0.0

    def lost(self, why: str) -> None:
        """Nobody takes the connection: the process is gone, and what comes next has proved nothing."""
        with self.lock:
            self.gone, self.proven, self.busy, self.quiet = why, float("-inf"), False, 0.0
            self.tokens, self.fine = {}, {}

    def answered(self, now: float) -> None:
        """It generated a token when it was asked."""
        with self.lock:
            self.proven, self.failed, self.quiet = now, "", 0.0

    def refused(self, why: str, code: int = 500) -> None:
        """It was asked for a token and said something else. What it blames on the question no restart would mend."""
        with self.lock:
            self.failed = why
            if code < 500:
                self.quiet = 0.0

    def hangs(self, now: float, limit_s: float) -> bool:
        """Whether it has been there for so long without a sign of life; to be asked after each look.

        Seconds in which nobody looked prove nothing (this process may have been stopped as well), so they do not count.
        """
        with self.lock:
            passed, self.looked = min(now - self.looked, 2 * LOOK_S), now
            self.quiet = self.quiet + passed if self.counts and not self.gone else 0.0
            return 0 < limit_s <= self.quiet

    def wants_canary(self, now: float) -> bool:
        """Whether it is time to ask for a token: only when nobody else does."""
        pause = RETRY_S if self.failed else CANARY_S
        return not self.gone and not self.busy and now - self.proven >= pause

    def verdict(self, now: float) -> tuple[bool, str]:
        """Whether requests should be sent there, and why."""
        with self.lock:
            if self.gone:
                return False, f"vLLM takes no connection: {self.gone}"
            if self.failed:
                return False, f"vLLM does not generate: {self.failed}"
            if self.proven == float("-inf"):
                return False, "vLLM has generated no token yet"
            silent = now - (min(self.fine.values()) if self.busy else self.proven)
            if silent > self.stall_s:
                return False, f"vLLM has generated no token for {silent:.0f} s"
            return True, f"a token {silent:.1f} s ago"


class Group:
    """The other hosts whose processes form one engine, and when each was last heard of.

    Without Ray each start on the head is another epoch, which they join once, and ask after (`others`). Those that Ray
    joins are asked whether its service takes a connection (`members`).
    """

    def __init__(self, epoch_file: str, others: Sequence[str]) -> None:
        self.file, self.others = Path(epoch_file), others
        self.epoch, self.broken = "", ""
        self.joined: dict[str, tuple[str, float]] = {}  # by address: which start of that host, and when it last asked
        self.met: dict[str, float] = {}  # by address and port: when it last took a connection
        self.lock = threading.Lock()

    def read(self) -> str:
        """The epoch of the engine that runs; empty for none."""
        try:
            epoch = self.file.read_text().strip()
        except OSError:
            epoch = ""
        if epoch != self.epoch:
            self.epoch, self.broken, self.joined = epoch, "", {}
        return epoch

    def join(self, now: float, address: str, start: str, mine: str = "") -> str:
        """What a host is to belong to, which began as `start`; empty where it must wait for the next epoch.

        One that tells of another epoch as its own (`mine`) only learns that it is over: it is about to begin anew.
        """
        with self.lock:
            epoch = self.read()
            if mine not in ("", epoch):
                return epoch
            known = self.joined.get(address)
            if known and known[0] != start:
                self.broken = f"{address} began anew"
            if not epoch or self.broken:
                return ""
            self.joined[address] = (start, now)
            return epoch

    def meet(self, now: float, place: str) -> None:
        """A host that Ray joins took a connection."""
        with self.lock:
            self.met[place] = now

    def missing(self, now: float) -> str:
        """Why no request should be sent here although the engine generates; empty if nobody is missing."""
        with self.lock:
            self.read()
            heard = {**self.met, **{address: seen for address, (_, seen) in self.joined.items()}}
        silent = (
            f"{place} was not heard of for {now - seen:.0f} s" for place, seen in heard.items() if now - seen > MISSED_S
        )
        return next(silent, "")

    def trouble(self, now: float) -> str:
        """Why the engine cannot go on; empty if it can."""
        with self.lock:
            if self.others and self.read() and not self.broken:
                gone = [address for address, (_, seen) in self.joined.items() if now - seen > SILENCE_S]
                self.broken = f"{gone[0]} is gone" if gone else ""
            return self.broken


def counters(text: str) -> dict[str, dict[str, float]]:
    """What is judged by, of each engine."""
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        name = METRIC.match(line)
        if name:
            engine = ENGINE.search(line)
            of = found.setdefault(engine.group(1) if engine else "", {})
            of[name.group(1)] = of.get(name.group(1), 0.0) + float(line.rpartition(" ")[2])
    return found


def fetch(url: str, body: dict[str, object] | None, timeout_s: float) -> bytes:
    """What vLLM answers."""
    headers = {"Content-Type": "application/json"}
    if os.environ.get("VLLM_API_KEY"):
        headers["Authorization"] = "Bearer " + os.environ["VLLM_API_KEY"]
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)  # noqa: S310  http, as the unit says
    with OPENER.open(request, timeout=timeout_s) as response:
        content: bytes = response.read()
    return content


def end(why: str) -> None:
    """Have systemd start the engine anew."""
    print(f"{why} The engine is started anew.", flush=True)
    os._exit(HANGS)  # from a thread, and at once


def watch(judge: Judge, group: Group, url: str, limit_s: float) -> None:
    """Look at vLLM until it hangs or loses a host. An API that is slow is no news; one that is not there is."""
    place, counted = urllib.parse.urlsplit(url), float("-inf")
    while True:
        try:
            socket.create_connection((str(place.hostname), place.port or 80), LOOK_S).close()
            if time.monotonic() - counted >= COUNT_S:
                counted = time.monotonic()
                judge.saw(counted, counters(fetch(f"{url}/metrics", None, LOOK_S).decode()))
        except urllib.error.HTTPError as error:
            judge.refused(f"/metrics answered {error.code}")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ConnectionRefusedError):
                judge.lost(str(reason))
                counted = float("-inf")
        if judge.hangs(time.monotonic(), limit_s):
            end(f"The engine hangs: {judge.verdict(time.monotonic())[1]}.")
        if lost := group.trouble(time.monotonic()):
            end(f"The engine has lost a host: {lost}.")
        time.sleep(POLL_S)


def canary(judge: Judge, url: str, model: str) -> None:
    """Ask for a token whenever nobody else does, for ever."""
    body = {"model": model, "prompt": "1 2 3", "max_tokens": 1, "ignore_eos": True}
    while True:
        if judge.wants_canary(time.monotonic()):
            try:
                usage = json.loads(fetch(f"{url}/v1/completions", body, judge.stall_s))["usage"]
                if usage["completion_tokens"]:
                    judge.answered(time.monotonic())
                else:
                    judge.refused("no token came back")
            except urllib.error.HTTPError as error:
                judge.refused(f"it answered {error.code}", error.code)
            except (OSError, ValueError, KeyError, TypeError) as error:
                reason = getattr(error, "reason", error)
                if not isinstance(reason, TimeoutError):  # others may have got their tokens meanwhile
                    judge.refused(str(reason) or type(reason).__name__)
        time.sleep(POLL_S)


def meet(group: Group, place: str) -> None:
    """See whether a host that Ray joins is there, for ever: vLLM notices its end much later."""
    address, _, port = place.rpartition(":")
    group.meet(time.monotonic(), place)
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection((address, int(port)), MISSED_S).close()
            group.meet(time.monotonic(), place)
        time.sleep(POLL_S)


def handler(judge: Judge, group: Group) -> type[BaseHTTPRequestHandler]:
    """What answers the gateway, and the other hosts of the engine."""

    class Answer(BaseHTTPRequestHandler):
        wbufsize = -1  # all at once: the gateway hangs up as soon as it has seen the first line

        def do_GET(self) -> None:
            if self.path.startswith("/join/"):
                self.join(*self.path[len("/join/") :].split("/", 1))
                return
            now = time.monotonic()
            good, why = judge.verdict(now)
            if good and (missing := group.missing(now)):
                good, why = False, missing
            self.say(200 if good else 503, why)

        def join(self, start: str, mine: str = "") -> None:
            if self.client_address[0] not in group.others:
                self.say(403, "that host does not belong to this replica")
                return
            epoch = group.join(time.monotonic(), self.client_address[0], start, mine)
            self.say(200 if epoch else 503, epoch or "there is nothing to join yet")

        def say(self, status: int, text: str) -> None:
            body = f"{text}\n".encode()
            self.send_response(status, "OK" if status == 200 else text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Two lines a second help nobody."""

    return Answer


class Server(ThreadingHTTPServer):
    """As many may ask as there are gateways, and hang up whenever they like."""

    daemon_threads = True

    def handle_error(self, *_args: object) -> None:
        """A peer that hung up is worth no line."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--url", required=True, help="where vLLM answers")
    parser.add_argument("--model", required=True, help="the name that it is served by")
    parser.add_argument(
        "--stall", type=float, default=60, metavar="SECONDS", help="without a token, until it counts as dead"
    )
    parser.add_argument(
        "--hang", type=float, default=0, metavar="SECONDS", help="without a token, until this ends with 70; 0 is never"
    )
    parser.add_argument("--epoch", default="/run/vllm/epoch", help="file that each start of vLLM writes anew")
    parser.add_argument(
        "--others", nargs="*", default=[], metavar="ADDRESS", help="hosts that join this one without Ray"
    )
    parser.add_argument(
        "--members", nargs="*", default=[], metavar="ADDRESS:PORT", help="Ray's service on the hosts that it joins"
    )
    asked = parser.parse_args()
    judge, group = Judge(asked.stall), Group(asked.epoch, asked.others)
    works: list[Callable[[], None]] = [partial(meet, group, place) for place in asked.members]
    works += [partial(watch, judge, group, asked.url, asked.hang), partial(canary, judge, asked.url, asked.model)]
    for work in works:
        threading.Thread(target=work, daemon=True).start()
    address, _, port = asked.listen.rpartition(":")
    Server((address, int(port)), handler(judge, group)).serve_forever()


if __name__ == "__main__":
    main()
