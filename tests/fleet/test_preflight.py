"""A preflight of two hosts of different kinds finds what is broken there, and leaves them as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from rehearsal import Run, Site
from snapshot import difference, snapshot

H20, A100 = "h20-1", "a100-1"
HOSTS = f"""\
serving:
  children:
    a: {{hosts: {{{H20}: {{hardware_profile: 8xh20-96}}}}}}
    b: {{hosts: {{{A100}: {{hardware_profile: 4xa100-80}}}}}}
"""
SERVING = """\
lab: true
weights_repo: provision-lab/tiny-deepseek-v3
serving_env_build: cpu
vllm_tensor_parallel_size: 1
swap_size: 64M
"""


@pytest.fixture(scope="module")
def site(make_site: Callable[[str], Site]) -> Site:
    """Two bare hosts, one with NVSwitches and one without."""
    site = make_site("preflight")
    (site.directory / "stack.lock.yml").unlink(missing_ok=True)
    for file in site.directory.rglob("*.yml"):
        file.unlink()
    site.variables("hosts.yml", HOSTS)
    site.variables("group_vars/serving.yml", SERVING)
    site.up()
    return site


@pytest.fixture(scope="module")
def bare(site: Site) -> tuple[Run, dict[str, Any]]:
    """A preflight of the bare hosts, and what it did to them."""
    before = {host: snapshot(site, host) for host in (H20, A100)}
    run = preflight(site)
    return run, {host: difference(state, snapshot(site, host)) for host, state in before.items()}


@pytest.fixture(scope="module")
def driven(site: Site, bare: tuple[Run, dict[str, Any]]) -> Site:
    """The hosts with a driver."""
    site.run("bootstrap", site.directory, "--stage", "site,driver")
    return site


def preflight(site: Site, code: int = 0) -> Run:
    return site.run("preflight", site.directory, "--json", code=code)


def findings(run: Run) -> dict[str, dict[str, Any]]:
    """What is not as it should be, by check; of several of one check the worst, which comes first."""
    listed = [each for each in json.loads(run.out)["findings"] if each["severity"] != "ok"]
    return {each["check"]: each for each in reversed(listed)}


def test_bare_hosts_are_seen_and_left_alone(bare: tuple[Run, dict[str, Any]]) -> None:
    run, done = bare
    told = json.loads(run.out)
    assert {name: found["severity"] for name, found in findings(run).items()} == {"driver": "note", "weights": "note"}
    assert [len(host["facts"]["base"]["nvidia"]) for host in told["hosts"]] == [12, 4]  # GPUs and NVSwitches
    assert done == {H20: {}, A100: {}}


def test_hosts_with_a_driver(driven: Site) -> None:
    run = preflight(driven)
    assert set(findings(run)) == {"weights"}
    h20, a100 = (host["facts"]["nvidia"] for host in json.loads(run.out)["hosts"])
    assert [len(each["gpus"]) for each in (h20, a100)] == [8, 4]
    assert [links["up"] for links in h20["links"]] == [18] * 8
    assert "nothing is in the way of a bootstrap" in driven.run("preflight", driven.directory).out


FAULTS = {
    "fabric-version": (0, "fabric", "warning", ["Fabric Manager 580.", "error 802", "provision bootstrap"]),
    "fabric-stopped": (0, "fabric", "warning", ["nvidia-fabricmanager.service is inactive"]),
    "package-upgraded": (0, "driver", "warning", ["the kernel runs module", "finds no GPU"]),
    "gpudirect-off": (1, "gpudirect", "note", ["GPUDirect RDMA is off", "modprobe nvidia_peermem"]),
    "ib-link-down": (0, "rdma", "note", ["mlx5_1 is down"]),
    "gpu-lost": (1, "gpus", "blocker", ["nvidia-smi ended with 15"]),
    "apt-locked": (0, "apt", "warning", ["unattended-upgr"]),
    "clock-skew": (1, "clock", "blocker", ["s ahead of the controller's"]),
    "sshd-gone": (3, "unreachable", "blocker", ["refuses connections"]),
}

BESIDES = {"gpudirect-off": ["driver"]}  # of other kernel modules than the inventory wants, for which it must reboot


@contextmanager
def broken(site: Site, fault: str) -> Iterator[None]:
    site.break_(H20, fault)
    try:
        yield
    finally:
        site.mend(H20, fault)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(driven: Site, fault: str) -> None:
    code, check, severity, words = FAULTS[fault]
    with broken(driven, fault):
        run = preflight(driven, code=code)
    found = findings(run)[check]
    assert (found["severity"], found["hosts"][0]) == (severity, H20), str(run)
    for word in words:
        assert word in found["message"] + found["todo"], str(run)
    assert findings(run).keys() <= {check, "weights", *BESIDES.get(fault, ())}, str(run)  # one cause, one finding


def test_a_port_that_is_taken(driven: Site) -> None:
    driven.sh(A100, "systemd-run --quiet --unit=squatter python3 -m http.server 8000")
    try:
        found = findings(preflight(driven, code=1))["ports"]
    finally:
        driven.sh(A100, "systemctl stop squatter")
    assert found["hosts"] == [A100]
    assert "port 8000 (vllm_port) is taken by process" in found["message"]
    assert "squatter.service" in found["message"]
