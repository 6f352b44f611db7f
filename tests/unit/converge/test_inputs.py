"""What changes when something that a stage depends on changes: never too little."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from provision.content import content_root
from provision.converge import STAGES, inputs
from provision.converge.inputs import Inputs, inputs_of
from provision.inventory import Fleet, load_fleet
from provision.inventory.schema import Spec, load_schema

SCHEMA = load_schema(content_root())
EXAMPLE = content_root() / "inventory/2x8xh800"
SHARED = {"stack", "lab"}  # the lock file, and a switch of the controller


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = shutil.copytree(EXAMPLE, tmp_path / "prod")
    for host in ("h800-01", "h800-02"):  # Ansible looks once in a process for which files there are
        add(path, host, swap_path="/swapfile")
    return path


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the roles and playbooks, for tests that change them."""
    for part in ("roles", "playbooks"):
        shutil.copytree(content_root() / part, tmp_path / "content" / part)
    monkeypatch.setattr(inputs, "content_root", lambda: tmp_path / "content")
    inputs._code.cache_clear()
    yield tmp_path / "content"
    inputs._code.cache_clear()


def of(inventory: Path) -> Inputs:
    return inputs_of(load_fleet(inventory))


def moved(before: Inputs, after: Inputs, host: str) -> set[str]:
    return {stage for stage in STAGES if before[host][stage] != after[host][stage]}


def add(inventory: Path, host: str, **variables: object) -> None:
    path = inventory / f"host_vars/{host}.yml"
    path.parent.mkdir(exist_ok=True)
    known = yaml.safe_load(path.read_text()) if path.exists() else {}
    path.write_text(yaml.safe_dump({**(known or {}), **variables}))


def another(spec: Spec, value: object) -> object:
    """Some value that a variable of this type may have, and has not."""
    if spec.choices:
        choice = next(choice for choice in spec.choices if choice != value)
        return [choice] if spec.type == "list" else choice
    if spec.type == "list":
        return []
    return {"str": "another", "path": "/another", "int": 7, "float": 7.5, "bool": True, "dict": {}, "raw": 7}[spec.type]


@pytest.fixture(scope="module")
def example() -> Fleet:
    return load_fleet(EXAMPLE)


@pytest.mark.parametrize("name", sorted(SCHEMA.specs.keys() - SHARED))
def test_every_variable_of_a_role_counts_for_its_stage(
    name: str, example: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, fleet = SCHEMA.specs[name], example
    before = inputs_of(fleet)
    host = fleet.hosts["h800-01"]
    monkeypatch.setitem(host.variables, name, another(spec, host.variables.get(name)))  # type: ignore[arg-type]
    changed = moved(before, inputs_of(fleet), "h800-01")
    if spec.role in STAGES:
        assert spec.role in changed
    assert changed


def test_the_same_inventory_gives_the_same_inputs(inventory: Path) -> None:
    assert of(inventory) == of(inventory)


def test_a_host_variable_counts_for_its_host_alone(inventory: Path) -> None:
    before = of(inventory)
    add(inventory, "h800-02", swap_size="96G")
    after = of(inventory)
    assert moved(before, after, "h800-02") == {"swap"}
    assert moved(before, after, "h800-01") == set()


def test_what_a_replica_shares_counts_for_all_its_hosts(inventory: Path) -> None:
    before = of(inventory)
    add(inventory, "h800-01", ray_address="10.9.9.9")
    assert {"ray", "vllm"} <= moved(before, of(inventory), "h800-02")


def test_what_one_role_alone_uses_counts_for_it_alone(inventory: Path) -> None:
    before = of(inventory)
    add(inventory, "h800-01", host_extra_sysctls={"vm.dirty_ratio": 30})
    assert moved(before, of(inventory), "h800-01") == {"host"}


def test_what_a_role_uses_of_another_counts_for_both(inventory: Path) -> None:
    before = of(inventory)
    add(inventory, "h800-01", host_service_user="serve", weights_dir="/srv/models")
    assert {"host", "weights", "ray", "vllm"} <= moved(before, of(inventory), "h800-01")


def test_who_hands_weights_on_counts_for_the_whole_chain_where_the_chain_is_made(inventory: Path) -> None:
    before = of(inventory)
    add(inventory, "h800-02", weights_address="10.9.9.9")
    changed = moved(before, of(inventory), "h800-01")
    assert "transfer" in changed
    assert not changed & {"weights", "tools"}


def test_a_version_counts_where_it_is_used(inventory: Path) -> None:
    fleet = load_fleet(inventory)
    before = inputs_of(fleet)
    lock = yaml.safe_load(fleet.stack.path.read_text())
    lock["stack"]["driver"] = "580.95.05"
    (inventory / "stack.lock.yml").write_text(yaml.safe_dump(lock))
    changed = moved(before, of(inventory), "h800-01")
    assert "driver" in changed
    assert not changed & {"swap", "site", "weights"}


def test_a_file_that_a_variable_names_counts(inventory: Path, tmp_path: Path) -> None:
    authority = tmp_path / "site-ca.pem"
    authority.write_text("one")
    add(inventory, "h800-01", site_ca_certificates=[str(authority)])
    before = of(inventory)
    authority.write_text("two")
    assert "site" in moved(before, of(inventory), "h800-01")


def test_a_helper_variable_counts_through_what_it_fills(inventory: Path) -> None:
    add(inventory, "h800-01", local_size="16G", swap_size="{{ local_size }}")
    before = of(inventory)
    add(inventory, "h800-01", local_size="32G")
    assert "swap" in moved(before, of(inventory), "h800-01")


def test_a_value_known_only_on_the_host_counts_with_every_file(inventory: Path) -> None:
    add(inventory, "h800-01", swap_size="{{ ansible_facts['memtotal_mb'] }}M")
    before = of(inventory)
    add(inventory, "h800-02", gpu_mig=True)
    assert "swap" in moved(before, of(inventory), "h800-01")


def test_code_counts_for_all(inventory: Path, tree: Path) -> None:
    before = of(inventory)
    with (tree / "roles/swap/library/swap_area.py").open("a") as module:
        module.write("\n")
    inputs._code.cache_clear()
    assert moved(before, of(inventory), "h800-01") == set(STAGES)


def test_documentation_does_not_count(inventory: Path, tree: Path) -> None:
    before = of(inventory)
    (tree / "roles/swap/README.md").write_text("Another word.\n")
    inputs._code.cache_clear()
    assert moved(before, of(inventory), "h800-01") == set()


def test_a_secret_is_hashed_slowly_and_never_shown(inventory: Path) -> None:
    add(inventory, "h800-01", vllm_api_key="hunter2", site_http_proxy="http://bob:hunter2@proxy.example.com:3128")
    told = str(of(inventory))
    assert "hunter2" not in told
    assert inputs._digest("hunter2") not in told


def test_what_a_plan_may_reboot_is_no_input_and_makes_no_stage_look_at_other_hosts(inventory: Path) -> None:
    before = of(inventory)
    assert not [
        name for stages in before.values() for own in stages.values() for name in own if "provision_reboots" in name
    ]
    add(inventory, "h800-01", gpu_power_limit=500)
    assert moved(before, of(inventory), "h800-02") & {"driver", "gpu"} == set()
