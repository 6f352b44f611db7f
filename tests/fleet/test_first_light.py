"""Two bare hosts to a model that answers; a second run that changes nothing; drift repaired, and nothing else."""

from __future__ import annotations

import json
import urllib.request

import pytest
from rehearsal import Prediction, Run, Site, wait_until
from snapshot import difference, snapshot

HOSTS = ("node-1", "node-2")
STAGES = [
    "preflight",
    "site",
    "host",
    "swap",
    "tools",
    "transfer",
    "driver",
    "gpu",
    "cuda",
    "rdma",
    "serving_env",
    "fabric",
    "weights",
    "ray",
    "vllm",
    "drift",
]


def vllm_process(site: Site) -> str:
    """Process id and start of the served engine: another value means that it was restarted."""
    return site.sh("node-1", "systemctl show -P MainPID -P ExecMainStartTimestampMonotonic vllm.service")


def endpoint(site: Site) -> dict[str, object]:
    return json.loads(site.run("status", site.directory, "--json").out)["replicas"][0]


def completion(site: Site) -> dict[str, object]:
    """One chat completion through the OpenAI API, by plain HTTP."""
    at = endpoint(site)
    body = {"model": at["model"], "messages": [{"role": "user", "content": "What is a GPU?"}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{at['url']}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        return json.load(response)


def test_check_on_bare_hosts_changes_nothing(predicted: Prediction) -> None:
    assert set(predicted.run.changes()) == set(HOSTS)
    assert predicted.done == {host: {} for host in HOSTS}


def test_check_predicts_what_apply_does(predicted: Prediction, first: Run) -> None:
    assert predicted.run.changes() == first.changes()


def test_every_stage_ran_on_every_host(first: Run) -> None:
    for host in HOSTS:
        seen = [event["stage"] for event in first.events if event["type"] == "task_finished" and event["host"] == host]
        assert list(dict.fromkeys(seen)) == STAGES


def test_the_model_answers_through_the_api(served: Site) -> None:
    answer = completion(served)
    assert answer["usage"]["completion_tokens"] >= 1
    assert answer["choices"][0]["message"]["content"]


def test_ask_shows_an_answer(served: Site) -> None:
    assert served.run("ask", served.directory, "What is a GPU?").out.strip()


def test_one_engine_spans_both_hosts(served: Site) -> None:
    for host in HOSTS:
        assert "RayWorker" in served.sh(host, "ps -eo args") or "ray::" in served.sh(host, "ps -eo args")


def test_a_transfer_of_weights_would_spare_both_hosts(served: Site) -> None:
    for host in HOSTS:
        served.sh(host, "test -e /run/provision/weights-serving")


def test_second_run_changes_nothing(served: Site) -> None:
    before, process = {host: snapshot(served, host) for host in HOSTS}, vllm_process(served)
    run = served.bootstrap()
    assert run.changes() == {}
    assert vllm_process(served) == process
    for host in HOSTS:
        assert difference(before[host], snapshot(served, host)) == {}


def test_second_run_says_so(served: Site) -> None:
    text = served.run("bootstrap", served.directory).text
    assert "2 hosts verified" in text
    assert "nothing to change" in text


def test_hosts_differ_as_their_variables_say(served: Site) -> None:
    sizes = [int(served.sh(host, "awk 'NR==2 {print $3}' /proc/swaps")) for host in HOSTS]
    assert sizes == [(64 * 1024) - 4, (96 * 1024) - 4]
    clocks = served.sh("node-2", "nvidia-smi --query-gpu=clocks.sm --format=csv,noheader,nounits").split()
    assert clocks[3] == "1830"
    assert "1830" not in clocks[:3] + clocks[4:]


def test_status_tells_all(served: Site) -> None:
    state = json.loads(served.run("status", served.directory, "--json").out)
    assert {host["name"]: len(host["gpus"]) for host in state["hosts"]} == {"node-1": 8, "node-2": 8}
    (replica,) = state["replicas"]
    assert replica["healthy"] is True
    assert replica["ray_nodes"] == {"alive": 2, "expected": 2}
    table = served.run("status", served.directory).out
    for word in (*HOSTS, "NVIDIA H20", "580.126.20", "vllm.service", "tiny", replica["url"]):
        assert word in table


DRIFTS = {
    "a sysctl": ("node-1", "sysctl -w vm.swappiness=60", "host", "vm.swappiness"),
    "a persisted sysctl": ("node-2", "sed -i /swappiness/d /etc/sysctl.d/90-provision.conf", "host", "sysctl"),
    "a unit": ("node-2", "systemctl stop nvidia-persistenced.service", "driver", "nvidia-persistenced"),
    "a file": ("node-1", "rm /etc/security/limits.d/*provision*", "host", "limits"),
    "a GPU's clock": ("node-2", "nvidia-smi -i 3 -lgc 1500", "gpu", "1830"),
    "swap": ("node-1", "swapoff /data/swapfile", "swap", "swap"),
    "a shard": (
        "node-2",
        "cd /data/models/*/current/ && printf x | dd of=$(ls *.safetensors | head -n 1) bs=1 seek=9000 conv=notrunc status=none",
        "weights",
        "safetensors",
    ),
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_drift_is_repaired_alone(served: Site, drift: str) -> None:
    host, break_it, stage, word = DRIFTS[drift]
    before, process = {name: snapshot(served, name) for name in HOSTS}, vllm_process(served)
    served.sh(host, break_it)
    repaired = served.foretold()
    assert list(repaired.changes()) == [host]
    for sentence in repaired.changes()[host]:
        assert sentence.startswith(f"{stage}: ")
    assert any(word in sentence for sentence in repaired.changes()[host])
    for name in HOSTS:
        assert difference(before[name], snapshot(served, name)) == {}
    assert vllm_process(served) == process


def test_a_stopped_engine_is_started_again(served: Site) -> None:
    before = snapshot(served, "node-1")
    served.sh("node-1", "systemctl stop vllm.service")
    repaired = served.bootstrap()
    assert list(repaired.changes()) == ["node-1"]
    assert completion(served)["usage"]["completion_tokens"] >= 1
    assert difference(before, snapshot(served, "node-1")) == {}


def test_an_engine_that_ends_at_once_is_started_later_each_time_but_by_hand_at_once(served: Site) -> None:
    dropped = "/run/systemd/system/vllm.service.d"
    served.sh(
        "node-1",
        f"mkdir -p {dropped}; printf '[Service]\nExecStart=\nExecStart=/bin/false\n' > {dropped}/false.conf; "
        "systemctl daemon-reload; systemctl restart vllm.service || true",
    )

    def said(seconds: int) -> int:
        asked = f"journalctl -b -u vllm.service --since=-5min -o cat | grep -c 'in {seconds} s' || true"
        return int(served.sh("node-1", asked))

    try:
        wait_until("the third restart", lambda: said(30) == 1)
        assert said(10) == 1
        assert "in 30 s" in " ".join(served.run("status", served.directory, code=None).out.split())
        served.sh("node-1", "timeout 8 systemctl restart vllm.service")
        wait_until("the fourth restart after that", lambda: (said(10), said(30), said(70)) == (2, 2, 1), 180)
    finally:
        served.sh("node-1", f"rm -r {dropped}; systemctl daemon-reload")
    assert served.bootstrap().changes() == {"node-1": ["vllm: Started vllm.service."]}
    assert served.bootstrap().changes() == {}
    assert completion(served)["usage"]["completion_tokens"] >= 1


@pytest.mark.parametrize("host", ["node-2", "node-1"])
def test_a_rebooted_host_serves_again_by_itself(served: Site, host: str) -> None:
    before = {name: snapshot(served, name) for name in HOSTS}
    boot = served.sh(host, "cat /proc/sys/kernel/random/boot_id; systemctl show -P UserspaceTimestampMonotonic")
    served.run("lab", "reboot", served.directory, host)

    def answers() -> bool:
        try:
            return completion(served)["usage"]["completion_tokens"] >= 1
        except (OSError, AssertionError, KeyError, TypeError):
            return False

    wait_until("an answer after the reboot", answers, seconds=420)
    assert served.sh(host, "cat /proc/sys/kernel/random/boot_id; systemctl show -P UserspaceTimestampMonotonic") != boot
    assert served.bootstrap().changes() == {}
    for name in HOSTS:
        assert difference(before[name], snapshot(served, name)) == {}
