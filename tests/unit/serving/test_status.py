"""What counts as healthy: a generated token, running units, GPUs that answer, and all hosts in the Ray cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from provision.cli.status import document
from provision.inventory import Fleet, Host, Replica
from provision.serving.endpoint import Endpoint
from provision.serving.status import HostStatus, ReplicaStatus, survey
from provision.ssh import Answer, Call
from provision.ssh.trouble import Trouble
from provision.stack import load_stack


def host(name: str) -> Host:
    defaults = {"vllm_host": "10.0.0.1", "vllm_port": 8000, "vllm_served_model_name": "tiny", "vllm_health_port": 8001}
    return Host(name, "10.0.0.1", "ops", None, None, (), {}, ("serving",), defaults)


HEAD, WORKER = host("a"), host("b")
ON_HEAD = ("ray-head.service", "vllm.service", "provision-health.service")
REPLICA = Replica("r", (HEAD, WORKER))


def facts(*units: str, **more: Any) -> dict[str, Any]:
    running = {name: {"active": "active", "sub": "running", "restarts": 0, "since_s": 9} for name in units}
    return {"gpus": [], "gpu_error": None, "units": running, "driver": "580.1", "boot_id": "x", "uptime_s": 1, **more}


def status(
    head: HostStatus | None = None, worker: HostStatus | None = None, nodes: int = 2, ok: bool = True
) -> ReplicaStatus:
    hosts = (
        head or HostStatus(HEAD, REPLICA, facts(*ON_HEAD)),
        worker or HostStatus(WORKER, REPLICA, facts("ray-worker.service")),
    )
    canary = {"ok": ok, "ms": 31 if ok else None, "error": None if ok else "timed out"}
    return ReplicaStatus(REPLICA, Endpoint("http://10.0.0.1:8000", "tiny"), hosts, canary, nodes)


def test_all_is_well() -> None:
    assert status().healthy
    assert status().problems == []


def test_a_status_code_is_not_enough() -> None:
    assert status(ok=False).problems == ["http://10.0.0.1:8000 does not generate: timed out."]


def test_how_far_an_engine_is_that_starts() -> None:
    starts = status(ok=False)
    assert starts.canary
    starts.canary["said"] = "Loading safetensors checkpoint shards:  31% Completed | 51/163"
    assert starts.problems == [
        "http://10.0.0.1:8000 does not generate: timed out. "
        "vLLM said last: Loading safetensors checkpoint shards:  31% Completed | 51/163"
    ]


def test_a_host_missing_from_the_cluster() -> None:
    assert status(nodes=1).problems == ["r: 1 of 2 hosts are in its Ray cluster."]


def test_a_unit_that_does_not_run() -> None:
    broken = HostStatus(WORKER, REPLICA, facts())
    assert status(worker=broken).problems == ["b: ray-worker.service is not installed."]
    mute = HostStatus(HEAD, REPLICA, facts(*ON_HEAD[:2]))
    assert status(head=mute).problems == ["a: provision-health.service is not installed."]


def test_a_lost_gpu_is_told_in_nvidia_smis_words() -> None:
    lost = HostStatus(WORKER, REPLICA, facts("ray-worker.service", gpu_error="GPU is lost"))
    assert status(worker=lost).problems == ["b: nvidia-smi says: GPU is lost"]


def test_a_host_that_does_not_answer() -> None:
    gone = HostStatus(WORKER, REPLICA, {}, "nothing answers")
    assert status(worker=gone).problems == ["b cannot be asked: nothing answers"]
    told = document([status(worker=gone)])
    assert [(h["name"], h["reachable"], h["gpus"]) for h in told["hosts"]] == [("a", True, []), ("b", False, None)]
    (replica,) = told["replicas"]
    assert (replica["healthy"], replica["answer_ms"], replica["head"]) == (False, 31, "a")
    assert replica["ray_nodes"] == {"alive": 2, "expected": 2}


def test_each_host_is_asked_and_what_keeps_it_from_answering_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Call] = {}

    def call(calls: list[Call], timeout: float) -> list[Answer]:
        asked.update({one.host.name: one for one in calls})
        gone = Trouble("no_sudo", "ops cannot use sudo without a password.", "Allow it there.")
        told = facts(*ON_HEAD, canary={"ok": True, "ms": 31, "error": None}, ray_nodes=2)
        return [Answer(HEAD, json.dumps(told)), Answer(WORKER, trouble=gone)]

    monkeypatch.setattr("provision.serving.status.call", call)
    (found,) = survey(
        Fleet(Path("inventory"), (), {"a": HEAD, "b": WORKER}, {}, (REPLICA,), load_stack(Path("none")), True)
    )
    assert found.canary == {"ok": True, "ms": 31, "error": None}
    assert found.problems == ["b cannot be asked: ops cannot use sudo without a password."]
    assert '"model": "tiny"' in asked["a"].script
    assert '"endpoint": null' in asked["b"].script


def test_a_probe_that_fails_is_told_with_its_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = [Answer(one, "", 1, "OSError: no space") for one in (HEAD, WORKER)]
    monkeypatch.setattr("provision.serving.status.call", lambda _calls, timeout: failed)
    (found,) = survey(
        Fleet(Path("inventory"), (), {"a": HEAD, "b": WORKER}, {}, (REPLICA,), load_stack(Path("none")), True)
    )
    assert found.problems[0] == "a cannot be asked: the probe ended with 1: OSError: no space"
