"""What clients notice of changes and failures behind two gateways. The last line printed is one JSON object.

docs/benchmarks.md says what is measured and what the keys mean. Needs root and nothing else: it makes its own simulated
fleet, and takes it down again, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from clients import Clients
from peers.measure import Deadline, OverError, interrupted, say
from peers.site import CHECKOUT, SERVING, Site

METRICS = 8405
STATE = re.compile(r'haproxy_server_status\{proxy="replicas",server="(\w+)",state="(\w+)"\} 1')
SESSIONS = re.compile(r'haproxy_server_current_sessions\{proxy="replicas",server="(\w+)"\} (\d+)')
EXITING = 0x4  # PF_EXITING of the kernel
LOOK_S = 0.1  # between two looks at the gateways, and between two questions whether the shared address answers
PART_S = 3600  # that a part may take
FIRST_S = 3600  # and the first bootstrap
BEFORE_S = 2  # in which what fails together was in flight together
# A start that compiles takes most of this machine for minutes, in which the other replicas do not answer as they would.
ARGUMENTS: dict[str, Any] = {**SERVING["vllm_args"], "enforce-eager": True}  # type: ignore[dict-item]
BACK_S = 600  # until a replica that was killed is back by itself


def direct(url: str, timeout: float) -> str:
    """What an address says, past any proxy."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout) as answer:
        return str(answer.read().decode())


class Watch:
    """Looks all the time at which replicas a gateway sends requests to, and whether the shared address answers."""

    def __init__(self, gateways: list[str], shared: str) -> None:
        self._gateways, self._shared, self._ended = gateways, shared, threading.Event()
        self.rotations: list[tuple[float, frozenset[str]]] = []
        self.flights: list[tuple[float, Counter[str]]] = []  # requests in flight, by replica
        self.answers: list[float] = [time.time()]  # moments at which the shared address answered
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._rotate, self._ask)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(10)

    def fewest(self, since: float) -> int:
        """The fewest replicas that were in rotation at any look after a moment."""
        return min(len(names) for at, names in list(self.rotations) if at >= since)

    def wait(self, what: str, true: Callable[[frozenset[str]], bool], since: float, seconds: float) -> float:
        """The first moment after `since` at which the replicas in rotation are as they should be."""
        while time.time() < since + seconds:
            for at, names in list(self.rotations):
                if at >= since and true(names):
                    return at
            time.sleep(LOOK_S)
        raise OverError(f"{what}: not within {seconds:.0f} s; in rotation now: {sorted(self.rotations[-1][1])}")

    def in_flight(self, replica: str, at: float) -> int:
        """The most requests that a replica had at a time, shortly before a moment."""
        return max((found[replica] for when, found in list(self.flights) if at - BEFORE_S <= when <= at), default=0)

    def silence(self, since: float) -> float:
        """The longest time without an answer of the shared address after a moment."""
        moments = [at for at in list(self.answers) if at >= since - 1]
        return max(late - early for early, late in zip(moments, [*moments[1:], time.time()], strict=True))

    def _rotate(self) -> None:
        while not self._ended.wait(LOOK_S):
            texts = []
            for address in self._gateways:
                with suppress(OSError):
                    texts.append(direct(f"http://{address}:{METRICS}/metrics", 1))
            if texts:
                names = frozenset(name for name, state in STATE.findall(texts[0]) if state == "UP")
                self.rotations.append((time.time(), names))
            found = Counter[str]()
            for name, number in (each for text in texts for each in SESSIONS.findall(text)):
                found[name] += int(number)
            self.flights.append((time.time(), found))

    def _ask(self) -> None:
        while not self._ended.wait(LOOK_S):
            try:
                direct(f"http://{self._shared}:8080/health", 0.5)
                self.answers.append(time.time())
            except OSError:
                continue


def is_ending(process: Path) -> bool:
    """Whether a process was killed, though others that end with it may keep it from being gone."""
    try:
        fields = (process / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return True
    return bool(int(fields[6]) & EXITING)


class Benchmark:
    """The parts, in order; `found` are the keys of the last line."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options = options
        self.site = Site(work, options.replicas, "", gateways=2)
        self._arguments(ARGUMENTS)
        self.found: dict[str, Any] = {"replicas": options.replicas, "clients": options.clients}
        self.failed: dict[str, str] = {}

    def go(self) -> None:
        """Bring the fleet up, and do to it what was asked for; a part that fails leaves the others alone."""
        self._prepare()
        parts = {
            "restart": self.rolling_restart,
            "upgrade": self.rolling_upgrade,
            "process": lambda: self.kill("process", self._kill_process),
            "power": lambda: self.kill("power", self._cut_power),
            "gateway": self.gateway_killed,
        }
        for name in (name for name in parts if name in self.options.parts):
            try:
                parts[name]()
            except OverError as error:
                self.failed[name] = str(error).splitlines()[0]
                say(f"FAILED: {name}: {error}")
        kills = [name for name in ("process", "power") if f"failed_{name}_kill" in self.found]
        if kills:
            self.found["failed_replica_kill"] = sum(self.found[f"failed_{name}_kill"] for name in kills)
            self.found["in_flight_replica_kill"] = sum(self.found[f"in_flight_{name}_kill"] for name in kills)
            self.found["out_of_rotation_s"] = max(self.found[f"out_of_rotation_{name}_s"] for name in kills)

    def _arguments(self, arguments: dict[str, Any]) -> None:
        self.site.write("group_vars/serving.yml", {**SERVING, "vllm_args": arguments})

    def _prepare(self) -> None:
        self.site.up(Deadline(PART_S))
        addresses = {name: str(self.site.variables(name)["ansible_host"]) for name in self.site.gateways}
        network = ipaddress.ip_interface(f"{next(iter(addresses.values()))}/24").network
        self.shared = str(network[200])
        self.gateways = list(addresses.values())
        (interface,) = json.loads(self.site.sh(self.site.gateways[0], "ip -json -4 address show scope global"))
        own = {
            "gateway_address": f"{self.shared}/24",
            "gateway_interface": interface["ifname"],
            "gateway_metrics_listen": "0.0.0.0",  # noqa: S104 - the lab's own network
        }
        self.site.write("group_vars/gateway.yml", own)
        took, _ = self.site.bootstrap(deadline=Deadline(FIRST_S))
        say(f"first bootstrap of {len(self.site.names)} replicas and 2 gateways: {took}")

    @contextmanager
    def load(self) -> Iterator[tuple[Clients, Watch]]:
        """Clients at the shared address, and a look at the gateways, for some seconds before and after."""
        url = f"http://{self.shared}:8080"
        with Watch(self.gateways, self.shared) as watch, Clients(url, "tiny", self.options.clients) as clients:
            watch.wait("all in rotation", lambda names: len(names) == len(self.site.names), time.time(), BACK_S)
            time.sleep(3)
            yield clients, watch
            time.sleep(3)

    def rolling(self, name: str, change: Callable[[], None]) -> None:
        """A change of all replicas under load."""
        change()
        begun = time.time()
        with self.load() as (clients, watch):
            took, events = self.site.bootstrap(deadline=Deadline(PART_S))
            fewest = watch.fewest(begun)
        drained = sum(event["type"] == "replica_drained" for event in events)
        if drained < len(self.site.names):
            raise OverError(f"only {drained} replicas were drained: not all were changed")
        asked, lost = len(clients.requests), len(clients.failed())
        say(f"rolling {name}: {took}; {asked} requests, {lost} failed, never fewer than {fewest} in rotation")
        self._tell(clients)
        self.found |= {
            f"failed_rolling_{name}": len(clients.failed()),
            f"requests_rolling_{name}": len(clients.requests),
            f"fewest_rolling_{name}": fewest,
            f"rolling_{name}_s": round(took.seconds, 1),
        }

    def rolling_restart(self) -> None:
        """Another argument of vLLM."""
        self.rolling("restart", lambda: self._arguments({**ARGUMENTS, "max-num-seqs": 6}))

    def rolling_upgrade(self) -> None:
        """Another driver, which takes a reboot."""

        def change() -> None:
            lock = yaml.safe_load((CHECKOUT / "inventory/lab/stack.lock.yml").read_text(encoding="utf-8"))
            lock["stack"]["driver"] = "580.159.04"
            self.site.write("stack.lock.yml", lock)
            self.site.write("group_vars/all.yml", {"lab": True, "reboot_allowed": True})

        self.rolling("upgrade", change)

    def kill(self, name: str, how: Callable[[str], float]) -> None:
        """One replica ends without notice, and comes back by itself."""
        host = self.site.names[0]
        replica = f"r{host[5:]}"
        with self.load() as (clients, watch):
            begun = how(host)
            out = watch.wait(f"{replica} out of rotation", lambda names: replica not in names, begun, 60) - begun
            back = watch.wait(f"{replica} back", lambda names: replica in names, begun + out, BACK_S) - begun
        failed = clients.failed()
        flying = watch.in_flight(replica, min((one.ended for one in failed), default=begun + out))
        say(
            f"{name} of a replica killed: {len(failed)} failed, {flying} in flight just before; out of rotation after "
            f"{out:.1f} s, back after {back:.0f} s"
        )
        self._tell(clients)
        self.found |= {
            f"failed_{name}_kill": len(failed),
            f"in_flight_{name}_kill": flying,
            f"out_of_rotation_{name}_s": round(out, 2),
            f"back_{name}_s": round(back, 1),
        }

    def gateway_killed(self) -> None:
        """The gateway that has the shared address loses its power."""
        holder = next(name for name in self.site.gateways if self.shared in self.site.sh(name, "ip -brief address"))
        with self.load() as (clients, watch):
            before = time.time()
            begun = self._cut_power(holder)
            watch.wait("some in rotation", bool, begun + 1, BACK_S)
            time.sleep(10)
            silence = watch.silence(before)
        say(f"gateway killed: the address was silent for {silence:.1f} s; {len(clients.failed())} requests failed")
        self._tell(clients)
        self.found |= {"gateway_takeover_s": round(silence, 2), "failed_gateway_kill": len(clients.failed())}

    def _kill_process(self, host: str) -> float:
        """The moment before the command that kills it."""
        begun = time.time()
        self.site.sh(host, "systemctl kill --signal=KILL vllm.service")
        return begun

    def _cut_power(self, host: str) -> float:
        """The moment at which the host's processes are killed: the command itself takes seconds to start here."""
        leader = Path("/proc", (self.site.fleet / "hosts" / host / "leader").read_text(encoding="ascii").strip())
        words = ("lab", "reboot", "--hard", self.site.inventory, host)
        threading.Thread(
            target=self.site.provision, args=words, kwargs={"deadline": Deadline(300)}, daemon=True
        ).start()
        deadline = time.time() + 60
        while not is_ending(leader):
            if time.time() > deadline:
                raise OverError(f"{host} was not switched off")
            time.sleep(LOOK_S / 10)
        return time.time()

    def _tell(self, clients: Clients) -> None:
        for one in clients.failed()[:5]:
            say(f"  failed after {one.ended - one.begun:.1f} s: {one.error}")


def main() -> None:
    """Print the figures; end with 1 if a part failed."""
    parts = ("restart", "upgrade", "process", "power", "gateway")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(parts), help="of %(default)s")
    parser.add_argument("--replicas", type=int, default=4, help="each a host with its own model [%(default)s]")
    parser.add_argument("--clients", type=int, default=6, help="that ask all the time [%(default)s]")
    options = parser.parse_args()
    options.parts = set(options.parts.split(","))
    if unknown := options.parts - set(parts):
        parser.error(f"no part {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, interrupted)
    with tempfile.TemporaryDirectory(prefix="sv-", dir=os.environ.get("TMPDIR")) as work:
        benchmark = Benchmark(options, Path(work))
        try:
            benchmark.go()
        except KeyboardInterrupt:
            print("Interrupted; the fleet is taken down.", file=sys.stderr)
            raise SystemExit(130) from None
        except OverError as error:
            raise SystemExit(str(error)) from None
        finally:
            say("taking the fleet down")
            benchmark.site.down()
    print(json.dumps(benchmark.found | {"failed": benchmark.failed}))
    sys.exit(1 if benchmark.failed else 0)


if __name__ == "__main__":
    main()
