from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from provision.errors import InventoryError
from provision.lab import plan


def inventory_of(monkeypatch: pytest.MonkeyPatch, **hosts: dict[str, object]) -> None:
    named = {name: SimpleNamespace(name=name, variables=variables) for name, variables in hosts.items()}
    monkeypatch.setattr(plan, "load_fleet", lambda path: SimpleNamespace(path=path, lab=True, hosts=named, gateways=()))


def test_a_number_of_hosts_needs_no_inventory(tmp_path: Path) -> None:
    hosts = plan.read(tmp_path / "none", 3)
    assert [host.name for host in hosts] == ["node-1", "node-2", "node-3"]
    assert {host.profile for host in hosts} == {plan.DEFAULT_PROFILE}


def test_hosts_of_an_inventory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = {"lab_disk": "2T", "lab_memory": "512M"}
    inventory_of(monkeypatch, a={"hardware_profile": "x"}, b={"hardware_profile": "y", **sizes})
    assert plan.read(tmp_path, None) == [
        plan.HostPlan("a", "x"),
        plan.HostPlan("b", "y", disk_size=2 << 40, memory=512 << 20),
    ]


def test_every_problem_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inventory_of(monkeypatch, a_b={"hardware_profile": "x"}, c={}, d={"hardware_profile": "x", "lab_disk": 4})
    with pytest.raises(InventoryError) as caught:
        plan.read(tmp_path, None)
    name, profile, disk = map(str, caught.value.problems)
    assert "'a_b' cannot be the name" in name
    assert "c has no hardware_profile" in profile
    assert "lab_disk is 4; expected" in disk


def test_a_fleet_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="241 hosts"):
        plan.read(tmp_path, 241)


def test_a_real_inventory_is_made_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = {
        "hardware_profile": "x",
        "swap_size": "64G",
        "vllm_args": {"max-model-len": 16384, "enable-expert-parallel": True},
    }
    host = SimpleNamespace(name="a", variables=asked)
    replica = SimpleNamespace(hosts=(host, host))
    fleet = SimpleNamespace(path=tmp_path, lab=False, hosts={"a": host}, replica_of=lambda _: replica)
    monkeypatch.setattr(plan, "load_fleet", lambda _: fleet)
    (made,) = plan.read(tmp_path, None)
    assert made.rehearsed == {
        "vllm_tensor_parallel_size": 2,
        "vllm_pipeline_parallel_size": 1,
        "ray_num_gpus": 1,
        "vllm_data_parallel_size": 1,
        "vllm_args": {"max-model-len": 512, "max-num-seqs": 8, "enable-expert-parallel": True},
        "swap_size": "64M",
        "swap_mode": "file",
        "swap_path": "/data/swapfile",
        "host_ntp_servers": [],
    }


def test_a_gateway_needs_no_hardware_profile(tmp_path: Path) -> None:
    serving = "serving: {children: {a: {hosts: {n1: {hardware_profile: 8xh20-96, weights_repo: org/model}}}}}\n"
    (tmp_path / "hosts.yml").write_text(serving + "gateway: {hosts: {gw: }}\n")
    assert {host.name for host in plan.read(tmp_path, None)} == {"n1", "gw"}
