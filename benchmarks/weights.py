"""How fast weights reach all hosts, beside one host alone, each host for itself, and rsync from the first one by one.

The last line printed is one JSON object; docs/benchmarks.md says what the keys mean. Needs root and nothing else: the
hosts are network namespaces of this machine, each behind a link shaped by `tc tbf`, the source behind one of a quarter.
What runs in them is what runs on real hosts: the program of the role, and nginx with its template.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jinja2

from provision.lab.hub import read_model

TREE = Path(__file__).resolve().parent.parent
ROLE = TREE / "roles/weights"
REPO = "bench/model"
SHARDS = 16
NETWORK = ipaddress.ip_network("10.213.7.0/24")
BRIDGE = "pwb0"
PORT, HUB_PORT, RSYNC_PORT = 8082, 8081, 8730
LATENCY = "20ms"  # that a shaped queue may add


def call(*words: object, check: bool = True) -> str:
    """Run a program; its output."""
    return subprocess.run([str(word) for word in words], check=check, capture_output=True, text=True).stdout


class Space:
    """A network namespace behind one shaped link: a host, or the source."""

    def __init__(self, number: int, work: Path, mbit: int) -> None:
        self.name, self.address = f"pwb-{number}", str(NETWORK[10 + number])
        self.work, self.mbit = work / self.name, mbit
        self.work.mkdir()
        self.running: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        """Make it, and its link to the switch."""
        link = f"{self.name}-b"
        call("ip", "netns", "add", self.name)
        call("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        call("ip", "link", "set", link, "master", BRIDGE, "up")
        call("ip", "-n", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        call("ip", "-n", self.name, "link", "set", "eth0", "up")
        call("ip", "-n", self.name, "link", "set", "lo", "up")
        shape = ("root", "tbf", "rate", f"{self.mbit}mbit", "burst", "256kb", "latency", LATENCY)
        call("tc", "qdisc", "add", "dev", link, *shape)
        call("tc", "-n", self.name, "qdisc", "add", "dev", "eth0", *shape)

    def start(self, *words: object, **environment: str) -> subprocess.Popen[bytes]:
        """Run a program in it, in the background."""
        argv = ["ip", "netns", "exec", self.name, *map(str, words)]
        with (self.work / "log").open("ab") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, env=os.environ | environment)
        self.running.append(process)
        return process

    def stop(self) -> None:
        """End what runs in it."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait()
        self.running.clear()

    def down(self) -> None:
        """Leave nothing of it."""
        self.stop()
        call("ip", "netns", "delete", self.name, check=False)
        call("ip", "link", "delete", f"{self.name}-b", check=False)


class Bench:
    """The source, and hosts around one switch."""

    def __init__(self, work: Path, options: argparse.Namespace) -> None:
        self.work, self.options = work, options
        self.model = work / "hub" / REPO
        make_model(self.model, options.size << 20)
        self.commit = read_model(self.model).commit
        self.hub = Space(0, work, options.link // 4)
        self.hosts = [Space(number, work, options.link) for number in range(1, options.hosts + 1)]

    def up(self) -> None:
        """The switch, the source and the hosts."""
        call("ip", "link", "add", BRIDGE, "type", "bridge")
        call("ip", "link", "set", BRIDGE, "up")
        for space in (self.hub, *self.hosts):
            space.up()
        self.hub.start(sys.executable, "-m", "provision.lab.hub", self.hub.address, HUB_PORT, self.work / "hub")
        until(lambda: answers(self.hub))

    def down(self) -> None:
        """Leave nothing."""
        for space in (self.hub, *self.hosts):
            space.down()
        call("ip", "link", "delete", BRIDGE, check=False)

    def fetch(self, count: int, chained: bool) -> float:
        """Seconds until so many hosts hold the verified model."""
        hosts = self.hosts[:count]
        chain = [host.address for host in hosts] if chained and count > 1 else []
        for host in hosts:
            shutil.rmtree(host.work / "models", ignore_errors=True)
            shutil.rmtree(host.work / "state", ignore_errors=True)
            self.prepare(host, chain)
        begin = time.monotonic()
        fetchers = [
            host.start(
                sys.executable,
                "-m",
                "provision_weights",
                "--spec",
                host.work / "spec.json",
                "fetch",
                PYTHONPATH=str(ROLE / "files"),
            )
            for host in hosts
        ]
        codes = [fetcher.wait() for fetcher in fetchers]
        seconds = time.monotonic() - begin
        for host, code in zip(hosts, codes, strict=True):
            if code:
                raise SystemExit(f"{host.name} ended with {code}:\n{(host.work / 'log').read_text()[-3000:]}")
            host.stop()
        return seconds

    def prepare(self, host: Space, chain: Sequence[str]) -> None:
        """The spec, and nginx."""
        for name in ("models", "state", "run"):
            (host.work / name).mkdir(exist_ok=True)
        spec = {
            "repo": REPO,
            "commit": self.commit,
            "directory": str(host.work / "models"),
            "state": str(host.work / "state"),
            "source": {"kind": "huggingface", "endpoint": f"http://{self.hub.address}:{HUB_PORT}"},
            "host": host.address if chain else "",
            "chain": list(chain),
            "port": PORT,
            "streams": self.options.streams,
            "margin": 0,
        }
        (host.work / "spec.json").write_text(json.dumps(spec))
        partial = host.work / "models" / REPO.replace("/", "--") / f"{self.commit}.partial"
        partial.mkdir(parents=True)  # with the list of files, as the module model_weights begins
        (partial / ".manifest.json").write_text(json.dumps({"files": manifest_of(self.model)}))
        if chain:
            text = (ROLE / "templates/weights-peers.conf.j2").read_text()
            known = {
                "__weights_listen": f"{host.address}:{PORT}",
                "__weights_chain": chain,
                "__weights_peers_run": host.work / "run",
                "__weights_state": host.work / "state",
                "__weights_rates": {"stream": 0, "serving_stream": 0},
                "__weights_serving_flag": host.work / "serving",
                "weights_streams": self.options.streams,
                "weights_dir": host.work / "models",
            }
            config = jinja2.Template(text, trim_blocks=True).render(known)
            (host.work / "nginx.conf").write_text(config)
            host.start("/usr/sbin/nginx", "-c", host.work / "nginx.conf", "-g", "user root;")
            time.sleep(0.3)

    def rsync(self, count: int) -> float:
        """Seconds until so many hosts have the files by rsync, one after another, the first has them by then."""
        first, *others = self.hosts[:count]
        config = first.work / "rsyncd.conf"
        config.write_text(
            f"uid = root\ngid = root\nuse chroot = no\n[m]\npath = {first.work}/models\nread only = yes\n"
        )
        first.start(
            "rsync",
            "--daemon",
            "--no-detach",
            f"--address={first.address}",
            f"--port={RSYNC_PORT}",
            f"--config={config}",
        )
        time.sleep(0.5)
        begin = time.monotonic()
        for host in others:
            shutil.rmtree(host.work / "models", ignore_errors=True)
            url = f"rsync://{first.address}:{RSYNC_PORT}/m/"
            if host.start("rsync", "-a", "--whole-file", url, host.work / "models").wait():
                raise SystemExit(f"rsync failed on {host.name}:\n{(host.work / 'log').read_text()[-3000:]}")
        seconds = time.monotonic() - begin
        for host in (first, *others):
            host.stop()
        return seconds


def answers(hub: Space) -> bool:
    """Whether the source listens."""
    words = ["ip", "netns", "exec", hub.name, sys.executable, "-c"]
    program = f"import socket; socket.create_connection(({hub.address!r}, {HUB_PORT}), 1)"
    return subprocess.run([*words, program], capture_output=True, check=False).returncode == 0


def until(true: object, seconds: float = 30) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > end:
            raise SystemExit("The source did not come up.")
        time.sleep(0.1)


def make_model(folder: Path, size: int) -> None:
    """A model of random bytes in safetensors files."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    index = {}
    each = size // SHARDS
    for number in range(1, SHARDS + 1):
        name, tensor = f"model-{number:05}-of-{SHARDS:05}.safetensors", f"layer.{number}"
        header = json.dumps({tensor: {"dtype": "U8", "shape": [each], "data_offsets": [0, each]}}).encode()
        data = random.Random(number).randbytes(each)  # noqa: S311 - nothing secret
        (folder / name).write_bytes(struct.pack("<Q", len(header)) + header + data)
        index[tensor] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def manifest_of(folder: Path) -> dict[str, dict[str, object]]:
    """The files of a model as the hub lists them."""
    return {
        name: {"size": file.size, **({"sha256": file.sha256} if file.sha256 else {"git": file.oid})}
        for name, file in read_model(folder).files.items()
    }


def processors() -> tuple[int, int]:
    """What the machine's processors have done since it started, and all that they could have: ticks."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def share_of(before: tuple[int, int], after: tuple[int, int]) -> float:
    """How much of their time they were busy in between, from 0 to 1."""
    return (after[0] - before[0]) / max(1, after[1] - before[1])


def verify_over_sha256sum(work: Path, size: int, repeats: int = 3) -> float:
    """The speed of `verify` by that of sha256sum in parallel, over the same files in memory; both with their start."""
    commit = "c" * 40
    place = work / "verify" / REPO.replace("/", "--") / commit
    make_model(place, size)
    place.with_suffix(".json").write_text(json.dumps({"files": manifest_of(place)}))
    env = os.environ | {"PYTHONPATH": str(ROLE / "files")}
    asked = json.dumps({"repo": REPO, "directory": str(work / "verify"), "commit": commit})
    verify = [sys.executable, "-m", "provision_weights", "--spec", "/nowhere", "--asked", asked, "verify"]
    sums = ["bash", "-c", f"find . -type f | xargs -n 1 -P {os.cpu_count()} sha256sum"]
    ours, theirs = [], []
    for _ in range(repeats):
        for words, took in ((sums, theirs), (verify, ours)):
            begin = time.monotonic()
            subprocess.run(words, cwd=place, env=env, check=True, capture_output=True)
            took.append(time.monotonic() - begin)
    return statistics.median(theirs) / statistics.median(ours)


@contextmanager
def made(options: argparse.Namespace) -> Iterator[Bench]:
    """Everything up; nothing is left of it afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-weights-") as folder:
        bench = Bench(Path(folder), options)
        try:
            bench.up()
            yield bench
        finally:
            bench.down()


def main() -> None:
    """Measure, tell, and print the JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=8)
    parser.add_argument("--size", type=int, default=192, help="MiB of the model [default: %(default)s]")
    parser.add_argument("--link", type=int, default=200, help="Mbit/s of each host's link [default: %(default)s]")
    parser.add_argument("--verify", type=int, default=2048, help="MiB that are verified [default: %(default)s]")
    parser.add_argument("--streams", type=int, default=4, help="[default: %(default)s]")
    parser.add_argument("--chain-only", action="store_true", help="leave out what it is compared with")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    found: dict[str, float] = {}
    with made(options) as bench:
        alone = found["alone_s"] = bench.fetch(1, chained=False)
        limit = (options.size << 20) * 8 / (options.link / 4 * 1e6)
        found["physical_limit_s"] = limit
        print(f"one host alone: {alone:.1f} s; the uplink alone takes {limit:.1f} s", flush=True)
        for count in (each for each in (2, 4, 8) if each <= options.hosts):
            before = processors()
            chained = found[f"chain_{count}_s"] = bench.fetch(count, chained=True)
            busy = found[f"chain_{count}_busy"] = share_of(before, processors())
            found[f"ratio_{count}"] = chained / alone
            if options.chain_only:
                print(
                    f"{count} hosts: {chained:.1f} s ({chained / alone:.2f} x), processors {busy:.0%} busy", flush=True
                )
                continue
            synced = found[f"rsync_{count}_s"] = alone + bench.rsync(count)
            each = found[f"each_{count}_s"] = bench.fetch(count, chained=False)
            print(
                f"{count} hosts: {chained:.1f} s ({chained / alone:.2f} x), {busy:.0%} busy; "
                f"rsync one by one {synced:.1f} s; each for itself {each:.1f} s",
                flush=True,
            )
        found["verify_over_sha256sum"] = verify_over_sha256sum(bench.work, options.verify << 20)
        print(f"verify reads at {found['verify_over_sha256sum']:.2f} x the speed of sha256sum in parallel", flush=True)
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
