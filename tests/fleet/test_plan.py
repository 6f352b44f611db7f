"""A plan is what then happens, sentence by sentence; and it is refused once the inventory or a host has moved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rehearsal import Run, Site
from snapshot import difference, snapshot

import provision.plan

HOSTS = ("node-1", "node-2")
STAGES = "preflight,site,host,swap,driver,gpu"
SCHEMA = json.loads((Path(provision.plan.__file__).parent / "plan.schema.json").read_text(encoding="utf-8"))
SWAP = "host_vars/node-2.yml"


class Planned:
    """A site of its own, and plans of its first stages."""

    def __init__(self, site: Site) -> None:
        self.site, self.file = site, site.directory.parent / "plan.json"

    def plan(self, *options: str, code: int = 2) -> dict[str, Any]:
        """Make a plan, keep it in the file, and check that it is what it should be."""
        run = self.site.run(
            "plan", self.site.directory, "--stage", STAGES, "--json", "--out", self.file, *options, code=code
        )
        found: dict[str, Any] = json.loads(run.out)
        jsonschema.validate(found, SCHEMA)
        assert json.loads(self.file.read_text(encoding="utf-8")) == found
        return found

    def apply(self, *options: str, code: int = 0) -> Run:
        return self.site.run("apply", self.file, *options, code=code)

    def refused(self, *words: str) -> None:
        """Applying the file is refused, with the name of what moved, and the hosts stay as they are."""
        before = {host: snapshot(self.site, host) for host in HOSTS}
        run = self.apply(code=2)
        for word in words:
            assert word in run.err, str(run)
        for host in HOSTS:
            assert difference(before[host], snapshot(self.site, host)) == {}

    def runs(self) -> int:
        """How often Ansible was started."""
        return len(list(self.site.state.glob("provision/runs/*")))


def sentences(plan: dict[str, Any]) -> dict[str, list[str]]:
    """What a plan foretells, in the shape in which a run tells it."""
    return {host: [f"{item['stage']}: {item['action']}" for item in own] for host, own in plan["changes"].items()}


def only(plan: dict[str, Any], host: str) -> list[dict[str, Any]]:
    """The changes of the one host that has any."""
    assert list(plan["changes"]) == [host], plan["changes"]
    changes: list[dict[str, Any]] = plan["changes"][host]
    return changes


@pytest.fixture(scope="module")
def planned(make_site: Callable[[str], Site]) -> Planned:
    site = make_site("planned")
    site.up()
    return Planned(site)


@pytest.fixture(scope="module")
def first(planned: Planned) -> dict[str, Any]:
    """The plan of bare hosts."""
    before = {host: snapshot(planned.site, host) for host in HOSTS}
    plan = planned.plan()
    for host in HOSTS:
        assert difference(before[host], snapshot(planned.site, host)) == {}
    return plan


@pytest.fixture(scope="module")
def done(planned: Planned, first: dict[str, Any]) -> Run:
    """What applying it did."""
    return planned.apply("--json")


def test_a_plan_of_bare_hosts_is_what_apply_does(first: dict[str, Any], done: Run) -> None:
    assert list(first["changes"]) == list(HOSTS)
    assert sentences(first) == done.changes()


def test_it_has_changes_of_every_role(first: dict[str, Any]) -> None:
    for host in HOSTS:
        stages = {item["stage"] for item in first["changes"][host]}
        assert stages == set(STAGES.split(",")) - {"preflight"}  # which only looks
        assert {item["reason"]["kind"] for item in first["changes"][host]} == {"first"}


def test_effects_are_those_that_the_run_had(first: dict[str, Any], done: Run) -> None:
    finished = [event for event in done.events if event["type"] == "task_finished" and event["status"] == "changed"]
    for host in HOSTS:
        effects = [effect for event in finished if event["host"] == host for effect in event["effects"]]
        assert [item["effect"] for item in first["changes"][host]] == effects


def test_the_file_is_its_owners_alone(planned: Planned, first: dict[str, Any]) -> None:
    assert planned.file.stat().st_mode & 0o777 == 0o600


def test_after_it_there_is_nothing_to_do(planned: Planned, done: Run) -> None:
    before = planned.runs()
    said = planned.apply()
    assert "nothing left to do" in said.out
    plan = planned.plan(code=0)
    assert plan["visits"] == plan["changes"] == {}
    assert "nothing left to do" in planned.apply().out
    assert planned.runs() == before  # Ansible was not started


@pytest.fixture
def resized(planned: Planned, done: Run) -> Any:
    """Another size of one host's swap in the inventory, put back afterwards; it was never applied."""
    text = (planned.site.directory / SWAP).read_text(encoding="utf-8")
    planned.site.variables(SWAP, text.replace("96M", "80M"))
    yield text
    planned.site.variables(SWAP, text)


def test_a_changed_variable_is_named_with_file_and_line(planned: Planned, resized: str) -> None:
    plan = planned.plan()
    for item in only(plan, "node-2"):
        assert item["stage"] == "swap"
        assert item["reason"]["text"] == f"swap_size changed ({SWAP}:1)"
        assert item["reason"]["origins"] == [{"variable": "swap_size", "path": SWAP, "line": 1}]
    again = planned.plan()
    assert {**plan, "made": ""} == {**again, "made": ""}  # the same state gives the same plan


def test_an_inventory_that_moved_is_refused(planned: Planned, resized: str) -> None:
    planned.plan()
    planned.site.variables(SWAP, resized.replace("96M", "72M"))
    planned.refused("node-2", "swap_size", f"{SWAP}:1", "provision plan")


@pytest.fixture
def drifted(planned: Planned, done: Run) -> Any:
    """One kernel tunable set by hand."""
    planned.site.sh("node-1", "sysctl -w vm.swappiness=60")
    yield
    planned.site.sh("node-1", "sysctl -w vm.swappiness=1 vm.max_map_count=1048576")


def test_drift_is_named_as_such(planned: Planned, drifted: None) -> None:
    (item,) = only(planned.plan(), "node-1")
    assert (item["resource"], item["before"], item["after"]) == ("vm.swappiness", "60", "1")
    assert (item["effect"], item["reason"]["kind"]) == ("none", "drift")
    screen = planned.site.run("plan", planned.site.directory, "--stage", STAGES, code=2).out
    for word in ("node-1", "vm.swappiness", "60 → 1", "drifted", "1 host changes"):
        assert word in screen


def test_the_same_resource_that_moved_is_refused(planned: Planned, drifted: None) -> None:
    planned.plan()
    planned.site.sh("node-1", "sysctl -w vm.swappiness=70")
    planned.refused("node-1", "host", "vm.swappiness", "70", "60")


def test_another_resource_that_moved_is_refused(planned: Planned, drifted: None) -> None:
    planned.plan()
    planned.site.sh("node-1", "sysctl -w vm.max_map_count=65530")
    planned.refused("node-1", "host", "vm.max_map_count")


def test_what_somebody_has_set_right_is_refused_unless_all_of_it(planned: Planned, drifted: None) -> None:
    planned.site.sh("node-2", "swapoff /data/swapfile")
    planned.plan()
    planned.site.sh("node-1", "sysctl -w vm.swappiness=1")
    planned.refused("node-1", "host stands now")
    planned.site.sh("node-2", "swapon /data/swapfile")
    assert "nothing left to do" in planned.apply().out


def test_drift_is_repaired_as_planned(planned: Planned, drifted: None) -> None:
    plan = planned.plan()
    assert planned.apply("--json").changes() == sentences(plan)
    assert planned.site.sh("node-1", "sysctl -n vm.swappiness").strip() == "1"


def test_a_new_driver_is_planned_with_its_reboot(planned: Planned, done: Run) -> None:
    lock, serving = (planned.site.directory / file for file in ("stack.lock.yml", "group_vars/serving.yml"))
    lock.write_text(lock.read_text(encoding="utf-8").replace("580.126.20", "580.159.04"), encoding="utf-8")
    serving.write_text(serving.read_text(encoding="utf-8") + "reboot_allowed: true\n", encoding="utf-8")
    plan = planned.plan("--limit", "node-1")
    reboots = [item for item in only(plan, "node-1") if item["effect"] == "reboot"]
    assert {item["stage"] for item in reboots} == {"driver"}
    assert "stack.driver changed (stack.lock.yml:" in reboots[0]["reason"]["text"]
    assert planned.apply("--json").changes() == sentences(plan)
    assert planned.plan("--limit", "node-1", code=0)["changes"] == {}


def test_a_host_that_is_not_reached_leaves_no_plan(planned: Planned) -> None:
    planned.file.unlink(missing_ok=True)
    planned.site.break_("node-2", "sshd-gone")
    try:
        run = planned.site.run("plan", planned.site.directory, "--stage", STAGES, "--out", planned.file, code=3)
    finally:
        planned.site.mend("node-2", "sshd-gone")
    assert "node-2" in run.text
    assert "is not written" in run.err
    assert not planned.file.exists()


def test_what_is_no_plan_is_left_alone(planned: Planned) -> None:
    other = planned.file.with_name("notes.txt")
    other.write_text("mine", encoding="utf-8")
    assert "not a plan" in planned.site.run("plan", planned.site.directory, "--out", other, code=64).err
    assert other.read_text(encoding="utf-8") == "mine"
    assert str(other) in planned.site.run("apply", other, code=65).err
