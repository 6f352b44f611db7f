"""How fast a fleet converges, beside stock Ansible and pyinfra. The last line printed is one JSON object.

docs/benchmarks.md says what is measured and what the keys mean. Needs root and nothing else: it makes its own simulated
fleets, one after another, and takes each down again, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers.drifts import Broken, chosen
from peers.measure import Deadline, OverError, Took, cpu_of, interrupted, say
from peers.site import Site
from peers.tools import Ours, Pyinfra, StockAnsible, coverage, uncovered

LIMITS = {"first": 5400, "peers": 1800, "rerun": 2400, "repair": 900, "drift": 3000, "controller": 1500}  # seconds each
LIGHT_STAGES = "site,host,swap,driver,gpu"  # what the large fleet gets: nothing in them needs gigabytes
SERVING_GIB = 2.0  # of memory for each host that serves
LIGHT_GIB = 0.15  # and for each that does not
IDLE_S = 10  # to see what idle hosts use


def figures(name: str, took: Took) -> dict[str, float]:
    """Where the time of a command went, by key."""
    parts = {"controller_cpu": took.controller, "hosts_cpu": took.hosts, "waiting": took.waiting}
    return {f"{name}_s": round(took.seconds, 2)} | {f"{name}_{part}_s": round(s, 2) for part, s in parts.items()}


def middle(tooks: list[Took]) -> Took:
    """The run of median time."""
    return sorted(tooks, key=lambda took: took.seconds)[len(tooks) // 2]


@contextmanager
def site(work: Path, hosts: int, stages: str, deadline: Deadline, serving: bool = True) -> Iterator[Site]:
    """A fleet of bare hosts; it is gone afterwards, however the part ended."""
    with tempfile.TemporaryDirectory(prefix="s", dir=work) as folder:
        made = Site(Path(folder), hosts, stages, serving)
        try:
            made.up(deadline)
            yield made
        finally:
            say("taking the fleet down")
            before = [signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)]
            made.down()
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
                signal.signal(number, handler)


class Benchmark:
    """The parts, in order; `found` are the keys of the last line."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.found: dict[str, Any] = {}
        self.failed: dict[str, str] = {}

    def go(self) -> None:
        """Every part that was asked for; one that fails leaves the others alone."""
        asked = self.options.parts
        if {"first", "rerun", "repair"} & asked:
            sizes = [size for size in (2, 4) if size < self.options.hosts] if "first" in asked else []
            for size in sizes:
                self.part("first", lambda deadline, size=size: self.smaller(size, deadline))
            self.part("first", self.fleet)
        if {"drift", "controller"} & asked:
            self.part("drift", self.large_fleet)

    def part(self, name: str, work: Callable[[Deadline], None]) -> None:
        """Run one part within its time, and note why it failed if it does."""
        try:
            work(Deadline(LIMITS[name]))
        except OverError as error:
            self.failed[name] = str(error).splitlines()[0]
            say(f"FAILED: {name}: {error}")

    def smaller(self, size: int, deadline: Deadline) -> None:
        """A first bootstrap of fewer hosts."""
        with site(self.work, size, self.options.stages, deadline) as made:
            self.first(made, deadline)

    def fleet(self, deadline: Deadline) -> None:
        """The fleet on which the peers are compared."""
        asked = self.options.parts
        with site(self.work, self.options.hosts, self.options.stages, deadline) as made:
            self.first(made, deadline)
            self.idle(made)
            if "rerun" in asked:
                self.part("peers", lambda limit: self.peers(made, limit))
            if "rerun" in asked and "peers" not in self.failed:
                self.part("rerun", lambda limit: self.rerun(made, limit))
            if "repair" in asked:
                self.part("repair", lambda limit: self.repair(made, limit))
            if "drift" in asked:
                self.part("drift", lambda limit: self.drift("drift_serving", made, limit))

    def first(self, made: Site, deadline: Deadline) -> None:
        """Bare hosts to converged: wall time against the longest chain of tasks on one host."""
        count = len(made.names)
        took, events = made.bootstrap(deadline=deadline)
        chains = dict.fromkeys(made.names, 0.0)
        for event in events:
            if event["type"] == "task_finished":
                chains[event["host"]] += event["seconds"]
        longest = max(chains.values())
        say(f"first bootstrap of {count} hosts: {took}; longest chain {longest:.1f} s")
        self.found |= figures(f"first_{count}", took)
        self.found[f"first_{count}_chain_s"] = round(longest, 1)
        self.found[f"first_{count}_over_chain"] = round(took.seconds / longest, 2)

    def idle(self, made: Site) -> None:
        """What the hosts take of the processors while nobody asks them for anything: all tools share the rest."""
        before = cpu_of(made.group)
        time.sleep(IDLE_S)
        self.found["idle_cores"] = round((cpu_of(made.group) - before) / IDLE_S, 2)
        say(f"idle, {len(made.names)} hosts use {self.found['idle_cores']} of {os.cpu_count()} processors")

    def peers(self, made: Site, deadline: Deadline) -> None:
        """The peers are asked for what is there, and mend what is broken; that they change no more, re-runs show."""
        desired = made.collect()
        say(f"the peers are asked for {coverage(desired)}; left out: {uncovered(desired) or 'nothing'}")
        self.found |= {"resources": sum(coverage(desired).values()), "uncovered": uncovered(desired)}
        Pyinfra.install(self.work / "pyinfra")
        for peer in (StockAnsible(made), Pyinfra(made, self.work / "pyinfra")):
            broken = Broken(made, made.names[0], chosen(self.options.stages))
            mending = peer.converge(deadline)
            broken.expect_mended(peer.name)
            if list(mending.changed) != [made.names[0]]:
                raise OverError(f"{peer.name} mended {made.names[0]} and reports changes on {list(mending.changed)}")
            say(f"{peer.name}: {len(broken.drifts)} drifts on one host mended; the others left alone")
            self.found[f"{peer.name}_repair_s"] = round(mending.took.seconds, 2)
        if left := Ours(made).converge(deadline).changed:
            raise OverError(f"provision finds changes after the peers: {left}")

    def rerun(self, made: Site, deadline: Deadline) -> None:
        """Converged re-runs of all three, in turn."""
        tools = (Ours(made), StockAnsible(made), Pyinfra(made, self.work / "pyinfra"))
        runs: dict[str, list[Took]] = {tool.name: [] for tool in tools}
        for _ in range(self.options.rounds):
            for tool in tools:
                made.disconnect()
                done = tool.converge(deadline)
                if done.changed:
                    raise OverError(f"{tool.name} changes converged hosts: {done.changed}")
                runs[tool.name].append(done.took)
                say(f"re-run, {tool.name}: {done.took}")
        ours, ansible, pyinfra = (middle(runs[tool.name]) for tool in tools)
        self.found["rerun_ansible_over_ours"] = round(ansible.seconds / ours.seconds, 2)
        self.found["rerun_pyinfra_over_ours"] = round(pyinfra.seconds / ours.seconds, 2)
        self.found |= figures("rerun", ours) | figures("rerun_ansible", ansible) | figures("rerun_pyinfra", pyinfra)
        full = Ours(made).converge(deadline, "--full").took
        say(f"re-run, provision --full: {full}")
        self.found |= figures("rerun_full", full)

    def repair(self, made: Site, deadline: Deadline) -> None:
        """One drifted resource on one host, from command to repaired."""
        Ours(made).converge(deadline)  # whatever an earlier part may have left
        times = []
        for drift in chosen(self.options.stages):
            broken = Broken(made, made.names[0], [drift])
            made.disconnect()
            done = Ours(made).converge(deadline)
            broken.expect_mended("provision")
            if list(done.changed) != [made.names[0]]:
                raise OverError(f"provision repaired {drift.name} and reports changes on {list(done.changed)}")
            times.append(done.took)
            say(f"repair of {drift.name} on one of {len(made.names)} hosts: {done.took}")
        self.found |= figures("repair_one", middle(times))
        self.found["repair_worst_s"] = round(max(took.seconds for took in times), 2)

    def large_fleet(self, deadline: Deadline) -> None:
        """Many hosts without anything that serves."""
        with site(self.work, self.options.drift_hosts, LIGHT_STAGES, deadline, serving=False) as made:
            took, _ = made.bootstrap(deadline=deadline)
            say(f"first bootstrap of {len(made.names)} hosts, for drift: {took}")
            self.found |= figures(f"first_light_{len(made.names)}", took)
            if "drift" in self.options.parts:
                self.part("drift", lambda limit: self.drift("drift", made, limit))
            if "controller" in self.options.parts:
                self.part("controller", lambda limit: self.controller(made, limit))

    def drift(self, name: str, made: Site, deadline: Deadline) -> None:
        """`provision drift` beside `ansible all -m ping`: with new connections, and with those that are kept."""
        asked = {
            "drift": lambda: made.drift(deadline),
            "ping": lambda: StockAnsible(made).ping(deadline),
            "logins": lambda: made.logins(deadline),
        }
        made.write_peers()
        self.found[f"{name}_hosts"] = len(made.names)
        for kind in ("", "_warm"):
            runs: dict[str, list[Took]] = {each: [] for each in asked}
            for _ in range(self.options.rounds):
                for each, ask in asked.items():
                    if not kind:
                        made.disconnect()
                    runs[each].append(ask())
            ours, ping, logins = (middle(runs[each]) for each in asked)
            how = "kept connections" if kind else "new connections"
            say(f"drift of {len(made.names)} hosts, {how}: {ours}")
            say(f"  beside it, ping: {ping}; {len(made.names)} new logins by ssh alone: {logins.seconds:.2f} s")
            self.found |= figures(f"{name}{kind}", ours) | figures(f"{name}_ping{kind}", ping)
            self.found[f"{name}_over_ping{kind}"] = round(ours.seconds / ping.seconds, 3)
            self.found[f"{name}_logins_s"] = round(logins.seconds, 2)

    def controller(self, made: Site, deadline: Deadline) -> None:
        """Time and memory of the controller for 1, 8 and all hosts: what stands, and one stage visited on all."""
        for count in sorted({1, min(8, len(made.names)), len(made.names)}):
            limit = ["--limit", ",".join(made.names[:count])]
            for name, more in (("verified", []), ("visited", ["--full", "--stage", "swap"])):
                stages = [] if more else ["--stage", LIGHT_STAGES]
                words = ["bootstrap", made.inventory, "--json", *limit, *stages, *more]
                took = made.provision(*words, deadline=deadline, memory=True)
                say(f"controller, {count} hosts {name}: {took}")
                self.found |= figures(f"controller_{count}_{name}", took)
                self.found[f"controller_{count}_{name}_mib"] = round(took.peak)


def hosts_that_fit(wanted: int, each: float) -> int:
    """As many hosts as the free memory holds."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 2**20
    fit = max(1, min(wanted, int((free - 2) / each)))
    if fit < wanted:
        say(f"{free:.1f} GiB of memory are free: {fit} hosts instead of {wanted}")
    return fit


def arguments() -> argparse.Namespace:
    """What is asked for."""
    parts = ("first", "rerun", "repair", "drift", "controller")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(parts), help="of %(default)s")
    parser.add_argument("--hosts", type=int, default=8, help="of the fleet on which all three converge [%(default)s]")
    parser.add_argument("--drift-hosts", type=int, default=32, help="of the fleet for drift and memory [%(default)s]")
    parser.add_argument("--stages", default="", help="of the first fleet, with commas [all]")
    parser.add_argument("--rounds", type=int, default=3, help="of each comparison; the median counts [%(default)s]")
    options = parser.parse_args()
    options.parts = set(options.parts.split(","))
    if unknown := options.parts - set(parts):
        parser.error(f"no part {', '.join(unknown)}")
    serves = not options.stages or "vllm" in options.stages
    options.hosts = hosts_that_fit(options.hosts, SERVING_GIB if serves else LIGHT_GIB)
    options.drift_hosts = hosts_that_fit(options.drift_hosts, LIGHT_GIB)
    return options


def main() -> None:
    """Print the figures; end with 1 if a part failed."""
    options = arguments()
    signal.signal(signal.SIGTERM, interrupted)
    with tempfile.TemporaryDirectory(prefix="cv-", dir=os.environ.get("TMPDIR")) as work:
        benchmark = Benchmark(options, Path(work))
        try:
            benchmark.go()
        except KeyboardInterrupt:
            sys.exit("Interrupted; the fleet is down.")
    names = {"hosts": options.hosts, "stages": options.stages or "all", "processors": os.cpu_count()}
    print(json.dumps(names | benchmark.found | {"failed": benchmark.failed}))
    sys.exit(1 if benchmark.failed else 0)


if __name__ == "__main__":
    main()
