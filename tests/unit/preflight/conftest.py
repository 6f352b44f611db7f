"""Hosts as they told of themselves: documents of simulated hosts, and of real ones made from recordings, changed at will."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest

from provision.content import content_root
from provision.inventory import Fleet, load_fleet
from provision.plan.decode import decode
from provision.preflight import SETTINGS
from provision.preflight.facts import Facts
from provision.preflight.rules.seen import Seen

ansible.module_utils.__path__.append(str(content_root() / "roles/host/module_utils"))
EXAMPLES = Path(__file__).parents[1] / "examples/preflight"
HOSTS = """\
serving:
  children:
    pair: {hosts: {n1: {ansible_host: 10.0.0.1}, n2: {ansible_host: 10.0.0.2}}}
    four: {hosts: {n3: {ansible_host: 10.0.0.3, hardware_profile: 4xa100-80}}}
    real: {hosts: {n4: {ansible_host: 10.0.0.4, hardware_profile: 8xh200-141}}}
"""
SERVING = """\
hardware_profile: 8xh20-96
weights_repo: lab/tiny
weights_revision: main
preflight_check_memory: false
vllm_pipeline_parallel_size: "{{ 2 if ansible_host in ('10.0.0.1', '10.0.0.2') else 1 }}"
"""
DOCUMENTS = {"n1": "h20", "n2": "h20", "n3": "a100", "n4": "h200x2"}
ADDRESSES = {"n1": "10.0.0.1", "n2": "10.0.0.2", "n3": "10.0.0.3", "n4": "10.0.0.4"}


def put(document: dict[str, Any], place: str, value: object) -> None:
    """Change one value of a document, by its path: `nvidia.gpus.3.fabric`; with a trailing + add to a list."""
    *above, last = place.rstrip("+").split(".")
    for name in above:
        document = document[int(name)] if isinstance(document, list) else document[name]
    if place.endswith("+"):
        document[last].append(value)
    elif isinstance(document, list):
        document[int(last)] = value
    else:
        document[last] = value


@pytest.fixture(scope="session")
def make_fleet(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Fleet]:
    """An inventory of a pair of hosts with NVSwitches, and one each of other kinds; with more group variables."""

    def make(more: str = "swap_size: 4G\n", pair: str = "") -> Fleet:
        inventory = tmp_path_factory.mktemp("inventory")
        (inventory / "group_vars").mkdir()
        (inventory / "hosts.yml").write_text(HOSTS)
        (inventory / "group_vars/serving.yml").write_text(SERVING + more)
        (inventory / "group_vars/pair.yml").write_text(pair)
        return load_fleet(inventory, asked=SETTINGS)

    return make


@pytest.fixture(scope="session")
def fleet(make_fleet: Callable[..., Fleet]) -> Fleet:
    return make_fleet()


@pytest.fixture(scope="session")
def document() -> Callable[..., dict[str, Any]]:
    """What a host told, with changes."""

    def tell(name: str = "h20", **changes: object) -> dict[str, Any]:
        told: dict[str, Any] = json.loads((EXAMPLES / f"{name}.json").read_text())
        for place, value in changes.items():
            put(told, place, value)
        return told

    return tell


@pytest.fixture(scope="session")
def host(fleet: Fleet, document: Callable[..., dict[str, Any]]) -> Callable[..., Seen]:
    """A host of the fleet that told what it has, with changes by place: `host("n1", {"nvidia.loaded": ""})`."""

    def see(
        name: str = "n1",
        changes: dict[str, object] | None = None,
        of: Fleet | None = None,
        told: str | None = None,
        ahead: tuple[float, float] = (-0.1, 0.1),
    ) -> Seen:
        facts = copy.deepcopy(document(told or DOCUMENTS[name]))
        own = next(each for each in facts["net"]["interfaces"] if each["addresses"])
        own["addresses"] = [ADDRESSES[name]]
        facts["machine"]["boot_id"] = name
        for place, value in (changes or {}).items():
            put(facts, place, value)
        within = of or fleet
        replica = within.replica_of(name)
        assert replica
        return Seen(within, replica, within.hosts[name], decode(facts, Facts), ahead)

    return see
