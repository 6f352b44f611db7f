"""Two replicas behind a gateway, under load: changed, drained, restarted, killed; whoever asks must not notice more than told."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from clients import Clients
from rehearsal import TINY, Run, Site, wait_until

HOSTS = """\
serving:
  children:
    g_a: {hosts: {node-1: }}
    g_b: {hosts: {node-2: }}
gateway: {hosts: {front: }}
"""
SERVING = (
    TINY
    + """\
vllm_tensor_parallel_size: 1
vllm_stall_seconds: 15
vllm_hang_seconds: 45
"""
)
ENGINE = "vllm_args: {{max-model-len: 512, max-num-seqs: {seqs}, num-gpu-blocks-override: 64, enforce-eager: true}}\n"
REPLICAS = ("g_a", "g_b")
CHANGES = itertools.cycle((5, 6))  # values of an argument of vLLM, each of which rolls
KILLS, SEED = int(os.environ.get("ROLLING_KILLS", "2")), int(os.environ.get("ROLLING_SEED") or time.time())


class Fleet:
    """The site, and what its gateway says."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def engine(self, seqs: int) -> None:
        self.site.variables("group_vars/serving.yml", SERVING + ENGINE.format(seqs=seqs))

    def status(self) -> dict[str, Any]:
        return json.loads(self.site.run("status", self.site.directory, "--json", code=None).out)

    def rotation(self) -> dict[str, str]:
        return {one["name"]: one["rotation"]["state"] for one in self.status()["replicas"]}

    def serve(self, verb: str, *words: str, code: int = 0) -> Run:
        return self.site.run("serve", verb, self.site.directory, *words, code=code)

    def clients(self, count: int = 2) -> Clients:
        address = json.loads(self.site.sh("front", "ip -json -4 address show scope global"))[0]["addr_info"][0]["local"]
        return Clients(f"http://{address}:8080", "tiny", count)

    def processes(self) -> dict[str, str]:
        show = "systemctl show -P MainPID -P ExecMainStartTimestampMonotonic vllm.service"
        return {host: self.site.sh(host, show) for host in ("node-1", "node-2")}


@pytest.fixture(scope="module")
def fleet(make_site: Callable[[str], Site]) -> Fleet:
    site = make_site("gateway")
    site.variables("hosts.yml", HOSTS)
    fleet = Fleet(site)
    fleet.engine(seqs=8)
    site.up()
    return fleet


@pytest.fixture(scope="module")
def first(fleet: Fleet) -> Run:
    return fleet.site.foretold()


def test_both_replicas_are_in_rotation_and_answer(fleet: Fleet, first: Run) -> None:
    assert fleet.rotation() == dict.fromkeys(REPLICAS, "in")
    with fleet.clients() as clients:
        time.sleep(8)
    assert len(clients.requests) > 4
    assert clients.failed() == []


def test_a_host_that_is_a_gateway_alone_is_prepared_as_one(fleet: Fleet, first: Run) -> None:
    seen = {event["stage"] for event in first.events if event["type"] == "task_finished" and event["host"] == "front"}
    assert seen == {"site", "gateway", "drift"}


def test_again_there_is_nothing_to_do(fleet: Fleet, first: Run) -> None:
    assert fleet.site.bootstrap().changes() == {}


def test_a_rolling_change_fails_no_request(fleet: Fleet, first: Run) -> None:
    before = fleet.processes()
    fleet.engine(seqs=6)
    with fleet.clients() as clients:
        run = fleet.site.bootstrap()
    assert [(kind["type"], kind["replica"]) for kind in run.events if kind["type"].startswith("replica_")] == [
        ("replica_drained", "g_a"),
        ("replica_admitted", "g_a"),
        ("replica_drained", "g_b"),
        ("replica_admitted", "g_b"),
    ]
    assert [event["in_flight"] for event in run.events if event["type"] == "replica_drained"] == [0, 0]
    after = fleet.processes()
    assert all(after[host] != before[host] for host in before)
    assert clients.failed() == []
    assert len(clients.requests) > 20
    assert fleet.rotation() == dict.fromkeys(REPLICAS, "in")


def test_what_a_person_drained_stays_drained(fleet: Fleet, first: Run) -> None:
    fleet.serve("drain", "g_a")
    assert fleet.rotation() == {"g_a": "draining", "g_b": "in"}
    assert fleet.site.bootstrap().changes() == {}
    assert fleet.rotation()["g_a"] == "draining"
    with fleet.clients(2) as clients:
        time.sleep(4)
    assert clients.failed() == []
    fleet.serve("admit", "g_a")
    assert fleet.rotation() == dict.fromkeys(REPLICAS, "in")


def test_one_that_answers_wrongly_is_not_admitted_by_a_run_about_something_else(fleet: Fleet, first: Run) -> None:
    expected = fleet.site.directory / "group_vars/all.yml"
    fleet.site.variables("group_vars/all.yml", "vllm_canary_answer: forty-two\n")
    with fleet.clients() as clients:
        failed = fleet.site.bootstrap(code=1)
        assert "for a completion it" in failed.text
        assert fleet.rotation() == {"g_a": "draining", "g_b": "in"}
        other = fleet.site.run("bootstrap", fleet.site.directory, "--stage", "gateway")
        assert "g_a stays out of rotation:" in other.text
        assert fleet.rotation() == {"g_a": "draining", "g_b": "in"}
        expected.unlink()
        fleet.site.bootstrap()
    assert fleet.rotation() == dict.fromkeys(REPLICAS, "in")
    assert clients.failed() == []
    assert fleet.site.bootstrap().changes() == {}


def test_a_restart_fails_no_request(fleet: Fleet, first: Run) -> None:
    before = fleet.processes()
    with fleet.clients() as clients:
        fleet.serve("restart", "g_b")
    after = fleet.processes()
    assert (after["node-1"], after["node-2"] != before["node-2"]) == (before["node-1"], True)
    assert clients.failed() == []


def test_an_engine_that_is_killed_costs_what_was_in_flight(fleet: Fleet, first: Run) -> None:
    watch = (
        "while [ $(date +%s) -lt $(($begin + 60)) ]; do "
        '/opt/provision/bin/provision-gateway state | grep -q \'"g_a": {"rotation": "down"\' && date +%s.%N && exit; done'
    )
    with fleet.clients() as clients:
        time.sleep(3)
        fleet.site.sh("node-1", "systemctl kill --signal=KILL vllm.service")
        killed = time.time()
        out = float(fleet.site.sh("front", f"begin={killed:.0f}; {watch}")) - killed
        wait_until("g_a is back by itself", lambda: fleet.rotation()["g_a"] == "in", 300)
        back = time.time()
        time.sleep(3)
    assert out < 5, out
    assert len(clients.failed()) <= 2, clients.failed()
    assert not [one for one in clients.failed() if one.ended > back]
    assert fleet.site.bootstrap().changes() == {}


def test_an_engine_that_hangs_is_started_anew_without_the_controller(fleet: Fleet, first: Run) -> None:
    before = fleet.processes()
    with fleet.clients() as clients:
        time.sleep(3)
        fleet.site.sh("node-1", "pkill --signal STOP --full [V]LLM::EngineCore")
        stopped = time.time()
        wait_until("g_a is out", lambda: fleet.rotation()["g_a"] == "down", 60)
        wait_until("g_a is back by itself", lambda: fleet.rotation()["g_a"] == "in", 300)
        time.sleep(3)
    after = fleet.processes()
    assert (after["node-1"] != before["node-1"], after["node-2"]) == (True, before["node-2"])
    assert len(clients.failed()) <= 2, clients.failed()
    told = fleet.site.sh("node-1", f"journalctl --unit provision-health.service --since @{stopped:.0f}")
    assert "The engine hangs: vLLM has generated no token" in told
    assert fleet.site.bootstrap().changes() == {}


def test_a_change_of_keys_is_a_reload(fleet: Fleet, first: Run) -> None:
    pid = fleet.site.sh("front", "systemctl show -P MainPID provision-gateway.service")
    keys = "gateway_keys: [{name: one, key: 0123456789abcdef0123}]\n"
    fleet.site.variables("group_vars/gateway.yml", keys)
    run = fleet.site.bootstrap()
    assert list(run.changes()) == ["front"]
    assert fleet.site.sh("front", "systemctl show -P MainPID provision-gateway.service") == pid
    with fleet.clients(2) as clients:
        time.sleep(3)
    assert clients.requests
    assert all("HTTP 401" in one.error for one in clients.requests)
    assert "0123456789abcdef0123" not in run.text + fleet.site.sh("front", "cat /etc/provision/secrets/gateway/*")
    (fleet.site.directory / "group_vars/gateway.yml").unlink()
    assert list(fleet.site.bootstrap().changes()) == ["front"]


def test_the_gateway_comes_back_after_a_reboot(fleet: Fleet, first: Run) -> None:
    fleet.site.sh("front", "systemctl reboot", check=False)
    time.sleep(5)

    def serves() -> bool:
        run = fleet.site.run("status", fleet.site.directory, "--json", code=None)
        told = json.loads(run.out)["gateways"] if run.out else [{"error": "none"}]
        return all(not one["error"] for one in told)

    wait_until("the gateway answers", serves, 120)
    wait_until("both are in rotation", lambda: set(fleet.rotation().values()) == {"in"}, 30)
    assert fleet.site.bootstrap().changes() == {}


def run_and_kill(fleet: Fleet, victim: str, seconds: float, chance: random.Random) -> tuple[str, float]:
    """Begin a rolling change, and after some seconds kill the run or cut a replica's host's power; what was hit, and when.

    A run that had ended by then is followed by another, and hit sooner.
    """
    site = fleet.site
    fleet.engine(seqs=next(CHANGES))
    run = site.begin("bootstrap", site.directory)
    with contextlib.suppress(subprocess.TimeoutExpired):
        told, _ = run.communicate(timeout=seconds)
        assert run.returncode == 0, told
        return run_and_kill(fleet, victim, seconds / 2, chance)
    if victim == "controller":
        run.kill()
        run.wait()
        return "the controller", seconds
    # A replica that is out already, if one is: the other must go on.
    out = [name for name, state in fleet.rotation().items() if state != "in"]
    host = {"g_a": "node-1", "g_b": "node-2"}[out[0] if out else chance.choice(REPLICAS)]
    site.run("lab", "reboot", site.directory, host, "--hard")
    run.communicate()
    return host, seconds


def longest_silence(clients: Clients) -> float:
    """Seconds between two good answers."""
    ends = sorted(one.ended for one in clients.requests if not one.error)
    return max((after - before for before, after in itertools.pairwise(ends)), default=0)


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_anywhere_in_a_rolling_change_one_more_run_makes_it_whole(
    fleet: Fleet, first: Run, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(f"{SEED}-{number}")  # noqa: S311 - no secret
    victim, seconds = chance.choice(["controller", "host"]), chance.uniform(2, 90)
    with fleet.clients() as clients:
        hit, seconds = run_and_kill(fleet, victim, seconds, chance)
        again = fleet.site.bootstrap(code=None)
        if again.code:  # the host that was cut off boots, or its replica's engine still starts
            again = fleet.site.bootstrap()
        wait_until("both are in rotation", lambda: set(fleet.rotation().values()) == {"in"}, 300)
    failed = clients.failed()
    with capsys.disabled():
        told = f"seed {SEED}-{number}: {hit} after {seconds:.0f} s; {len(failed)} of {len(clients.requests)} failed"
        print(f"\n  {told}; longest without an answer {longest_silence(clients):.0f} s ", end="")  # noqa: T201
    assert len(failed) <= (2 if hit.startswith("node") else 0), failed  # those in flight there
    assert longest_silence(clients) < 60
    assert fleet.site.bootstrap().changes() == {}


def test_a_third_replica_joins_without_touching_the_others(fleet: Fleet, first: Run) -> None:
    before = fleet.processes()
    fleet.site.variables("hosts.yml", HOSTS.replace("gateway:", "    g_c: {hosts: {node-3: }}\ngateway:"))
    fleet.site.up()
    with fleet.clients() as clients:
        run = fleet.site.bootstrap()
    assert clients.failed() == []
    assert fleet.processes() == before
    told = [said for host in ("node-1", "node-2") for said in run.changes().get(host, [])]
    assert all(said.startswith("transfer: ") for said in told), told  # whom they hand weights on to
    assert fleet.rotation() == dict.fromkeys((*REPLICAS, "g_c"), "in")
    assert fleet.site.bootstrap().changes() == {}
