"""A chain of hosts on loopback addresses: real nginx each, the program as the unit runs it, and a hub that can misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import pytest
from stores import BadHub, make_model, running

from provision.lab.hub import read_model

ROLE = Path(__file__).parents[4] / "roles/weights"
REPO = "test/model"
NUMBERS = itertools.count(os.getpid() % 200 * 250)


@dataclass
class Node:
    """One host: its address, its disk, its nginx, its fetcher."""

    address: str
    work: Path
    spec: dict = field(default_factory=dict)
    nginx: subprocess.Popen | None = None
    fetcher: subprocess.Popen | None = None
    environment: dict = field(default_factory=dict)

    @property
    def base(self) -> Path:
        return self.work / "models" / REPO.replace("/", "--")

    @property
    def partial(self) -> Path:
        return self.base / f"{self.spec['commit']}.partial"

    def state(self) -> dict:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.work / "state/state.json").read_text())
        return {}

    def serve(self) -> None:
        for name in ("models", "state", "run"):
            (self.work / name).mkdir(parents=True, exist_ok=True)
        template = jinja2.Environment(keep_trailing_newline=True).from_string(  # noqa: S701 - no HTML
            (ROLE / "templates/weights-peers.conf.j2").read_text()
        )
        config = template.render(
            __weights_listen=f"{self.address}:{self.spec['port']}",
            __weights_chain=self.spec["chain"],
            __weights_peers_run=self.work / "run",
            __weights_state=self.work / "state",
            __weights_rates={"stream": 0, "serving_stream": 0},
            __weights_serving_flag=self.work / "serving",
            weights_streams=8,
            weights_dir=self.work / "models",
        )
        (self.work / "nginx.conf").write_text(config)
        words = ["/usr/sbin/nginx", "-e", "stderr", "-c", self.work / "nginx.conf"]
        if os.geteuid() == 0:
            words += ["-g", "user root;"]
        with (self.work / "nginx.log").open("ab") as log:
            self.nginx = subprocess.Popen(words, stdout=log, stderr=log)
        for _ in range(500):
            with contextlib.suppress(OSError):
                socket.create_connection((self.address, self.spec["port"])).close()
                return
            time.sleep(0.01)
        raise AssertionError((self.work / "nginx.log").read_text())

    def start(self) -> Node:
        (self.work / "spec.json").write_text(json.dumps(self.spec))
        words = [sys.executable, "-m", "provision_weights", "--spec", self.work / "spec.json", "fetch"]
        env = {**os.environ, "PYTHONPATH": str(ROLE / "files"), "HF_HUB_DISABLE_TELEMETRY": "1", **self.environment}
        with (self.work / "fetch.log").open("ab") as log:
            self.fetcher = subprocess.Popen(words, env=env, stdout=log, stderr=log)
        return self

    def log(self) -> str:
        return (self.work / "fetch.log").read_text()

    def end(self, timeout: float = 120) -> int:
        return self.fetcher.wait(timeout)

    def kill(self, nginx: bool = False) -> None:
        """As a power cut would: no word to anyone."""
        self.fetcher.send_signal(signal.SIGKILL)
        self.fetcher.wait()
        if nginx:
            self.stop_serving()

    def stop_serving(self) -> None:
        if self.nginx:
            self.nginx.terminate()
            self.nginx.wait()
            self.nginx = None


class Chain:
    """The hosts, and what they should come to hold."""

    def __init__(self, work: Path, hub: BadHub, count: int) -> None:
        self.hub, self.model = hub, hub.models / REPO
        self.commit = read_model(self.model).commit
        number = next(NUMBERS)
        addresses = [f"127.{1 + number // 250 % 250}.{number % 250}.{1 + each}" for each in range(count)]
        self.nodes = [Node(address, work / f"host-{each}") for each, address in enumerate(addresses)]
        for node in self.nodes:
            node.spec = {
                "repo": REPO,
                "commit": self.commit,
                "directory": str(node.work / "models"),
                "state": str(node.work / "state"),
                "source": {"kind": "huggingface", "endpoint": hub.url},
                "host": node.address,
                "chain": addresses,
                "port": 18082,
                "streams": 3,
                "margin": 0,
                "patience": 60,
                "serving_flag": str(node.work / "serving"),
            }
            node.serve()

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number]

    def start(self) -> None:
        for node in self.nodes:
            node.start()

    def sizes(self) -> int:
        return sum(path.stat().st_size for path in self.model.iterdir())

    def is_whole(self, node: Node) -> bool:
        return hashes(node.partial) == hashes(self.model)

    def finish(self, timeout: float = 120, nodes: list[Node] | None = None) -> None:
        """All end well, and hold the same."""
        for node in nodes or self.nodes:
            assert node.end(timeout) == 0, node.log()
        for node in nodes or self.nodes:
            assert self.is_whole(node), node.log()

    def wait_for(self, condition, timeout: float = 60) -> None:
        until = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < until, "\n".join(node.log() for node in self.nodes)
            time.sleep(0.02)

    def close(self) -> None:
        for node in self.nodes:
            if node.fetcher and node.fetcher.poll() is None:
                node.fetcher.kill()
                node.fetcher.wait()
            node.stop_serving()


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.fixture
def bad_hub(tmp_path):
    make_model(tmp_path / "hub" / REPO)
    server = BadHub(tmp_path / "hub")
    with running(server):
        yield server
        server.down = True


@pytest.fixture
def chain(bad_hub, tmp_path):
    made = []

    def make(count: int, **spec) -> Chain:
        made.append(Chain(tmp_path, bad_hub, count))
        for node in made[-1].nodes:
            node.spec.update(spec)
        return made[-1]

    yield make
    for each in made:
        each.close()
