"""The real HAProxy with the role's own configuration on the loopback, before programs that stream as vLLM does."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from engines import Replica, a_free_port, wait_for
from programs import ROLES, imported, templar, trusted

ROLE = ROLES / "gateway"
TOOL = ROLE / "files/gateway.py"
HAPROXY = "/usr/sbin/haproxy"
KEYS = [
    {"name": "team-a", "key": "key-of-team-a-0123456789", "requests_per_minute": 3},
    {"name": "ops", "key": "key-of-ops-0123456789abc", "role": "admin"},
]


class Gateway:
    """HAProxy as its unit starts it, with the files that the role would put on a host."""

    def __init__(self, replicas: list[Replica], **variables):
        self.home = Path(tempfile.mkdtemp(prefix="gw-"))
        self.folder, self.run = self.home / "etc", self.home / "run"
        self.folder.mkdir()
        self.run.mkdir()
        self.port = a_free_port()
        self.log = self.home / "log"
        self.tools = imported(TOOL)
        self.tools.RUN, self.tools.STATE = str(self.run), str(self.home / "servers.state")
        self.tools.CONFIG = str(self.folder / "haproxy.cfg")
        self.variables = {
            "inventory_hostname": "gw-01",
            "groups": {"gateway": ["gw-01"], "serving": ["gpu"]},
            "hostvars": {"gpu": {}},
            "gateway_listen": "127.0.0.1",
            "gateway_port": self.port,
            "gateway_metrics_port": 0,
            "gateway_max_connections": 1000,  # what starts it here may open no more files
            "__gateway_run": str(self.run),
            "__gateway_state": str(self.home / "servers.state"),
            "__gateway_folder": str(self.folder),
            **variables,
        }
        self.put(replicas)

    def params(self, replicas: list[Replica], **more) -> dict:
        """What the role gives to gateway_config."""
        told = {r.name: {"head": "gpu", "address": r.address, "port": r.port, "health_port": 0} for r in replicas}
        texts = {
            name: trusted((ROLE / f"templates/{name}.j2").read_text()) for name in ("haproxy.cfg", "keepalived.conf")
        }
        own = {"provision_replicas": told, "__gateway_keepalived": texts["keepalived.conf"]}
        engine = templar({**self.variables, **own, **more}, "gateway")
        text = engine.template(texts["haproxy.cfg"])
        if os.geteuid():  # only root can become another user
            text = text.replace("    user haproxy\n    group haproxy\n", "")
        return {
            "config": text,
            "files": engine.template(trusted("{{ __gateway_files }}")),
            "secrets": engine.template(trusted("{{ __gateway_secrets }}")),
            "folder": str(self.folder),
            "socket": str(self.run / "admin.sock"),
        }

    def put(self, replicas: list[Replica], **more) -> None:
        params = self.params(replicas, **more)
        for name, text in {"haproxy.cfg": params["config"], **params["files"], **params["secrets"]}.items():
            (self.folder / name).write_text(text)

    def start(self) -> None:
        argv = [HAPROXY, "-W", "-f", self.folder / "haproxy.cfg", "-S", self.run / "master.sock"]
        with self.log.open("a") as log:
            self.program = subprocess.Popen(argv, stdout=log, stderr=log)
        wait_for(lambda: self.program.poll() is not None or self.answers())

    def stop(self) -> None:
        self.program.terminate()
        self.program.wait()
        shutil.rmtree(self.home)

    def tool(self, *arguments: str) -> subprocess.CompletedProcess:
        env = {f"PROVISION_GATEWAY_{name}": getattr(self.tools, name) for name in ("RUN", "STATE", "CONFIG")}
        argv = [sys.executable, "-I", "-S", TOOL, *arguments]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)

    def answers(self) -> bool:
        try:
            return bool(self.state())
        except (self.tools.GatewayError, ValueError, KeyError):
            return False

    def state(self) -> dict:
        return self.tools.state()

    def drain(self, name: str) -> None:
        self.tools.put(name, "drain")

    def admit(self, name: str) -> None:
        self.tools.put(name, "ready")

    def rotation(self, name: str) -> str:
        return self.state()[name]["rotation"]

    def reload(self) -> None:
        """What ExecReload does."""
        self.tools.save()
        self.program.send_signal(signal.SIGUSR2)

    def ask(self, method: str = "POST", path: str = "/v1/completions", key: str = "", **body) -> "Reply":
        """One request, answered or not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        reply = Reply()
        try:
            connection.request(method, path, json.dumps(body) if method == "POST" else None, headers)
            answer = connection.getresponse()
            reply.status, reply.replica = answer.status, answer.headers.get("X-Replica", "")
            reply.text = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            reply.error = repr(error)
        finally:
            connection.close()
        whole = reply.text.endswith("[DONE]\n\n") if body.get("stream") else True
        reply.good = reply.status == 200 and not reply.error and whole
        return reply


class Reply:
    """What came of one request."""

    status, replica, text, error, good = 0, "", "", "", False

    def __repr__(self) -> str:
        return f"<{self.status} from {self.replica} {self.error} {self.text[-60:]!r}>"


class Load:
    """Clients that ask without pause, half of them streaming, until told to stop."""

    def __init__(self, gateway: Gateway, clients: int = 4):
        self.replies: list[Reply] = []
        self.ended = threading.Event()
        self.gateway = gateway
        self.threads = [threading.Thread(target=self.work, args=(number % 2 == 0,)) for number in range(clients)]
        for thread in self.threads:
            thread.start()

    def work(self, stream: bool) -> None:
        while not self.ended.is_set():
            self.replies.append(self.gateway.ask(stream=stream, tokens=4, pause=0.1))

    def more(self, count: int) -> None:
        """Wait until so many more have been answered."""
        wanted = len(self.replies) + count
        wait_for(lambda: len(self.replies) >= wanted, 60)

    def stop(self) -> list[Reply]:
        self.ended.set()
        for thread in self.threads:
            thread.join()
        return self.replies


@pytest.fixture
def make_gateway(replicas):
    """A running gateway with variables of the role."""
    made = []

    def make(**variables) -> Gateway:
        gateway = Gateway(replicas, **variables)
        made.append(gateway)
        gateway.start()
        assert gateway.program.poll() is None, gateway.log.read_text()
        return gateway

    yield make
    for gateway in made:
        gateway.stop()


@pytest.fixture
def gateway(make_gateway):
    return make_gateway()


@pytest.fixture
def load():
    started = []

    def start(gateway: Gateway, clients: int = 4) -> Load:
        started.append(Load(gateway, clients))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def keys():
    return KEYS
