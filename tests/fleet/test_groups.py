"""Two replicas of two hosts each behind a gateway, one joined by Ray and one by vLLM: whichever part ends, nobody is sent there."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable

import pytest
from clients import Clients
from rehearsal import TINY, Run, Site, wait_until

HOSTS = """\
serving:
  children:
    by_ray: {hosts: {node-1: , node-2: }}
    by_vllm: {hosts: {node-3: , node-4: }}
gateway: {hosts: {front: }}
"""
SERVING = (
    TINY
    + """\
vllm_tensor_parallel_size: 2
vllm_args: {max-model-len: 512, max-num-seqs: 4, num-gpu-blocks-override: 64, enable-expert-parallel: true}
"""
)
BOTH = {"by_ray": "in", "by_vllm": "in"}
OUT_S = 5


class Fleet:
    """The site, and what its gateway says."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def rotation(self) -> dict[str, str]:
        run = self.site.run("status", self.site.directory, "--json", code=None)
        return {one["name"]: one["rotation"]["state"] for one in json.loads(run.out)["replicas"]} if run.out else {}

    def address(self, host: str) -> str:
        found = json.loads(self.site.sh(host, "ip -json -4 address show scope global"))
        return str(found[0]["addr_info"][0]["local"])

    def clients(self) -> Clients:
        return Clients(f"http://{self.address('front')}:8080", "tiny", 2)

    def out(self, replica: str, since: float) -> float:
        """The moment at which the gateway took a replica out."""
        look = f'/opt/provision/bin/provision-gateway state | grep -q \'"{replica}": {{"rotation": "down"\''
        watch = f"while [ $(date +%s) -lt {since + 60:.0f} ]; do {look} && date +%s.%N && exit; sleep 0.1; done; exit 1"
        return float(self.site.inside("front", watch))


def last_sign(address: str) -> float:
    """When a host's kernel last refused a connection, which it does until it is gone."""
    seen = time.time()
    while True:
        try:
            socket.create_connection((address, 9), 1).close()
        except ConnectionRefusedError:
            seen = time.time()
        except OSError:
            return seen
        time.sleep(0.05)


@pytest.fixture(scope="module")
def fleet(make_site: Callable[[str], Site]) -> Fleet:
    site = make_site("groups")
    site.variables("hosts.yml", HOSTS)
    site.variables("group_vars/serving.yml", SERVING)
    site.variables("group_vars/by_ray.yml", "vllm_executor: ray\n")
    site.variables("group_vars/by_vllm.yml", "vllm_executor: mp\n")
    site.up()
    return Fleet(site)


@pytest.fixture(scope="module")
def first(fleet: Fleet) -> Run:
    return fleet.site.foretold()


def test_both_replicas_are_in_rotation_and_there_is_nothing_more_to_do(fleet: Fleet, first: Run) -> None:
    assert set(first.changes()) == {"node-1", "node-2", "node-3", "node-4", "front"}
    assert fleet.rotation() == BOTH
    assert fleet.site.bootstrap().changes() == {}


def comes_back(fleet: Fleet, replica: str, end: Callable[[], float]) -> None:
    """Out of rotation soon after `end`, which returns the moment; then back by itself, and whoever asks fails once at the most."""
    with fleet.clients() as clients:
        time.sleep(5)
        begun = time.time()
        ended = end()
        out = fleet.out(replica, begun) - ended
        wait_until(f"{replica} is back by itself", lambda: fleet.rotation() == BOTH, 500)
        back = time.time()
        time.sleep(3)
    assert out < OUT_S, out
    assert len(clients.failed()) <= 2, clients.failed()
    assert clients.failed(since=back) == []
    assert len(clients.requests) > 10
    assert fleet.site.bootstrap().changes() == {}


@pytest.mark.parametrize(
    ("replica", "host", "unit"), [("by_ray", "node-2", "ray-worker.service"), ("by_vllm", "node-4", "vllm.service")]
)
def test_a_part_that_is_killed_takes_its_replica_out(
    fleet: Fleet, first: Run, replica: str, host: str, unit: str
) -> None:
    def kill() -> float:
        fleet.site.inside(host, f"systemctl kill --signal=KILL {unit}")
        return time.time()

    comes_back(fleet, replica, kill)


@pytest.mark.parametrize(("replica", "host"), [("by_ray", "node-2"), ("by_vllm", "node-4")])
def test_a_host_that_loses_its_power_takes_its_replica_out(fleet: Fleet, first: Run, replica: str, host: str) -> None:
    address, words = fleet.address(host), ("lab", "reboot", fleet.site.directory, host, "--hard")

    def cut() -> float:
        threading.Thread(target=fleet.site.run, args=words, daemon=True).start()
        return last_sign(address)

    comes_back(fleet, replica, cut)


@pytest.mark.parametrize("replica", BOTH)
def test_a_restart_fails_no_request(fleet: Fleet, first: Run, replica: str) -> None:
    with fleet.clients() as clients:
        run = fleet.site.run("serve", "restart", fleet.site.directory, replica)
    assert f"{replica} is in rotation" in run.text
    assert clients.failed() == []
    assert fleet.rotation() == BOTH
    assert fleet.site.bootstrap().changes() == {}
