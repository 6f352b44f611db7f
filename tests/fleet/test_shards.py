"""Two hosts in two shards on a real Ray, from the built wheel: the events, changes and receipts of a run without it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rehearsal import Run, Site

HOSTS = ("node-1", "node-2")
TWO_REPLICAS = "serving: {children: {a: {hosts: {node-1: }}, b: {hosts: {node-2: }}}}\n"
STAGES = ("--stage", "site,host")
SHARDS = ("--engine", "ray", "--ray-address", "local", *STAGES)


@pytest.fixture(scope="module")
def site(command: Path, make_site: Callable[[str], Site]) -> Site:
    """Two bare hosts, each a replica; the command's environment gets the extra `ray`."""
    (wheel,) = command.parents[2].glob("*.whl")
    subprocess.run([command.with_name("pip"), "install", "-qq", f"{wheel}[lab,ray]"], check=True)
    made = make_site("shards")
    made.variables("hosts.yml", TWO_REPLICAS)
    for replica in ("a", "b"):
        made.variables(f"group_vars/{replica}.yml", "vllm_tensor_parallel_size: 1\n")
    made.up()
    return made


def told(run: Run) -> dict[str, list[Any]]:
    """What a run says of each host, in order, but for times and the run's name."""
    keys = ("type", "stage", "task", "status", "actions", "effects", "changes", "message", "counts", "held_back")
    return {
        host: [{key: event.get(key) for key in keys} for event in run.events if event.get("host") == host]
        for host in HOSTS
    }


def receipts(site: Site) -> list[str]:
    return [site.sh(host, "sha256sum /var/lib/provision/receipts/*.json") for host in HOSTS]


def test_shards_do_what_one_controller_does(site: Site) -> None:
    predicted = site.bootstrap("--check", *STAGES, code=2)
    made = site.bootstrap(*SHARDS)
    assert made.changes() == predicted.changes()
    assert set(made.changes()) == set(HOSTS)
    assert site.bootstrap(*STAGES).changes() == {}

    sealed = receipts(site)
    alone, sharded = site.bootstrap("--full", *STAGES), site.bootstrap("--full", *SHARDS)
    assert told(sharded) == told(alone)
    assert receipts(site) == sealed

    (journal,) = (site.state / "provision/runs").glob(f"{sharded.events[0]['run']}/events.jsonl")
    assert [json.loads(line) for line in journal.read_text().splitlines()] == sharded.events
    assert not list((site.state / "provision/shards").iterdir())
