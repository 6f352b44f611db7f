"""What a plan says of a fleet, without any host."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import jsonschema
import pytest

import provision.plan
from provision import exits
from provision.converge import Change, HostResult
from provision.converge.result import Difference, Failure
from provision.converge.standing import disturbed
from provision.drift import HostReceipts, StageReceipt
from provision.plan.make import Planning, make_plan
from provision.plan.model import Capacity, Options, Origin
from provision.ssh.trouble import Trouble

SCHEMA = json.loads((Path(provision.plan.__file__).parent / "plan.schema.json").read_text())


def planned(world, **options) -> Planning:
    return make_plan(world.fleet(), Options(**{"stages": world.STAGES, **options}))


def reasons(planning: Planning, host: str) -> list[str]:
    return [item.reason.text for item in planning.plan.changes.get(host, ())]


def test_where_everything_stands_ansible_is_not_started(world):
    world.bootstrapped(serving=["r_a", "r_b"])
    planning = planned(world)
    assert planning.exit_code == exits.OK
    assert planning.plan.changes == planning.plan.visits == {}
    assert not world.runs


def test_bare_hosts(world):
    world.bare()
    world.foretold = {"n1": [world.SWAPPINESS, world.DRIVER], "n2": [world.SWAPPINESS]}
    planning = planned(world)
    assert planning.exit_code == exits.PENDING
    assert [run["check"] for run in world.runs] == [True]
    assert reasons(planning, "n1") == ["never bootstrapped"] * 2
    assert "n3" not in planning.plan.changes
    assert set(planning.plan.visits) == {"n1", "n2", "n3", "n4"}
    assert planning.plan.now == Capacity((), 0)
    assert [wave.out for wave in planning.plan.waves] == [()]


def test_a_document_fits_the_schema(world):
    world.bootstrapped(serving=["r_a"])
    world.write("host_vars/n2.yml", "swap_size: 8G\n")
    world.drifted("n1", world.SWAPPINESS, who="uid 1000")
    world.foretold = {"n1": [world.SWAPPINESS, world.DRIVER], "n2": [world.SWAP]}
    world.seconds = 12.5
    jsonschema.validate(json.loads(json.dumps(asdict(planned(world).plan))), SCHEMA)


def test_the_same_state_gives_the_same_plan(world):
    world.bootstrapped(serving=["r_a"])
    world.drifted("n1", world.SWAPPINESS)
    world.foretold = {"n1": [world.SWAPPINESS]}
    first, second = planned(world).plan, planned(world).plan
    assert replace(first, made="") == replace(second, made="")


def test_a_changed_variable_is_named_with_its_place(world):
    world.bootstrapped()
    world.write("group_vars/serving.yml", (world.path / "group_vars/serving.yml").read_text().replace("64G", "32G"))
    world.foretold = {"n1": [world.SWAP]}
    (item,) = planned(world, stages=("swap",)).plan.changes["n1"]
    assert item.reason.kind == "inputs"
    assert item.reason.text == "swap_size changed (group_vars/serving.yml:5)"
    assert item.reason.origins == (Origin("swap_size", "group_vars/serving.yml", 5),)


def test_a_version_is_named_with_its_line_in_the_lock(world):
    world.bootstrapped()
    lock = (world.path / "stack.lock.yml").read_text()
    world.write("stack.lock.yml", lock.replace("580.126.20", "580.126.21"))
    world.foretold = {"n1": [world.DRIVER]}
    assert reasons(planned(world, stages=("driver",)), "n1") == ["stack.driver changed (stack.lock.yml:2)"]


def test_a_variable_that_is_gone_or_new(world):
    world.bootstrapped()
    world.write("host_vars/n2.yml", "gpu_power_limit: 500\n")
    world.foretold = {"n2": [world.change("gpu", "Set the power limit.", "nvidia-smi -pl", "700", "500")]}
    assert reasons(planned(world, stages=("gpu",)), "n2") == [
        "gpu_locked_clocks no longer set, gpu_power_limit set (host_vars/n2.yml:1)"
    ]


def test_changed_code(world):
    world.bootstrapped()
    told = world.told["n1"]
    receipt = replace(told.stages["host"], inputs={**told.stages["host"].inputs, "code": "0" * 16})
    world.told["n1"] = replace(told, stages={**told.stages, "host": receipt})
    world.foretold = {"n1": [world.SWAPPINESS]}
    (reason,) = reasons(planned(world), "n1")
    assert reason.startswith("provision ")
    assert reason.endswith("the code of role host changed")


def test_drift_names_who_did_it(world):
    world.bootstrapped()
    world.drifted("n1", world.SWAPPINESS, who="set by hand (uid 1000, journal)")
    world.foretold = {"n1": [world.SWAPPINESS]}
    planning = planned(world)
    assert reasons(planning, "n1") == ["drifted: set by hand (uid 1000, journal)"]
    assert planning.plan.changes["n1"][0].reason.who == "set by hand (uid 1000, journal)"


def test_drift_beside_a_changed_variable_stays_drift(world):
    world.bootstrapped()
    turned_on = world.change("swap", "Turned on swap on /swapfile.", "/proc/swaps", "off", "on")
    world.drifted("n2", turned_on)
    world.write("host_vars/n2.yml", "gpu_locked_clocks: {3: 1830}\nswap_size: 8G\n")
    world.foretold = {"n2": [world.SWAP, turned_on]}
    assert reasons(planned(world, stages=("swap",)), "n2") == ["swap_size changed (host_vars/n2.yml:2)", "drifted"]


def test_a_secret_in_the_words_of_a_host_is_masked(world):
    world.write("host_vars/n1.yml", "weights_token: hf_s3cr3t\n")
    world.bootstrapped()
    world.drifted("n1", world.SWAPPINESS, who="curl -H hf_s3cr3t")
    receipt = replace(world.told["n2"].stages["swap"], error="hf_s3cr3t was refused")
    world.told["n2"] = replace(world.told["n2"], stages={**world.told["n2"].stages, "swap": receipt})
    world.foretold = {"n1": [world.SWAPPINESS], "n2": [world.SWAP]}
    text = json.dumps(asdict(planned(world).plan))
    assert "s3cr3t" not in text
    assert text.count("********") >= 3


def test_what_was_not_finished_and_what_was_asked_for(world):
    world.bootstrapped()
    told = world.told["n1"]
    world.told["n1"] = replace(told, stages={stage: told.stages[stage] for stage in told.stages if stage != "swap"})
    world.foretold = {"n1": [world.SWAP], "n2": [world.SWAP]}
    assert reasons(planned(world), "n1")[0].startswith("unfinished: ")
    assert reasons(planned(world, full=True), "n2") == ["asked for with --full"]


def test_a_task_without_sentences_is_told_by_its_name(world):
    world.bare()
    differences = (Difference("/etc/a", "1", "2"), Difference("/etc/b", "", "3"))
    world.foretold = {"n1": [Change("host", "Write two files", (), differences, ("none",))]}
    (item,) = planned(world).plan.changes["n1"]
    assert (item.action, item.resource, item.after) == ("Write two files", "/etc/a, /etc/b", "2\n3")


def test_a_step_without_a_resource_of_its_own_takes_none_from_its_neighbours(world):
    world.bare()
    steps = ("Turned off swap on /var/swap.", "Made the swap file.", "Entered it in /etc/fstab.")
    differences = (Difference("/etc/fstab", "", "x"),)
    world.foretold = {"n1": [Change("swap", "Converge", steps, differences, ("none", "none", "none"))]}
    assert [item.resource for item in planned(world).plan.changes["n1"]] == ["", "", "/etc/fstab"]


@pytest.mark.parametrize("effect", ["restart", "gpu_reset", "reboot"])
def test_a_replica_that_serves_leaves_rotation(world, effect):
    world.bootstrapped(serving=["r_a", "r_b"], kv_tokens=1000)
    reboot = replace(world.DRIVER, effects=(effect,))
    for host in ("n1", "n3"):
        world.drifted(host, reboot)
    world.foretold = {"n1": [reboot], "n3": [reboot]}
    world.seconds = 60.0
    plan = planned(world).plan
    assert [(wave.out, wave.left) for wave in plan.waves] == [
        (("r_a",), Capacity(("r_b",), 1000)),
        (("r_b",), Capacity(("r_a",), 1000)),
    ]
    assert plan.now == Capacity(("r_a", "r_b"), 2000)
    assert plan.fewest == Capacity(("r_b",), 1000)
    assert plan.seconds == 120.0


@pytest.mark.parametrize("effect", ["none", "reload"])
def test_a_replica_that_is_not_disturbed_serves_on(world, effect):
    world.bootstrapped(serving=["r_a", "r_b"])
    world.drifted("n1", replace(world.SWAPPINESS, effects=(effect,)))
    world.foretold = {"n1": [replace(world.SWAPPINESS, effects=(effect,))]}
    plan = planned(world).plan
    assert [wave.out for wave in plan.waves] == [()]
    assert plan.fewest.replicas == ("r_a", "r_b")


def behind_a_gateway(world) -> None:
    hosts = (world.path / "hosts.yml").read_text()
    world.write("hosts.yml", hosts + "gateway:\n  hosts:\n    gw: {ansible_host: 10.0.0.9}\n")


@pytest.mark.parametrize("changes", [False, True])
def test_what_the_run_drains_leaves_rotation_whatever_changes(world, changes):
    behind_a_gateway(world)
    world.bootstrapped(serving=["r_a", "r_b"])
    world.write(
        "group_vars/serving.yml", (world.path / "group_vars/serving.yml").read_text() + "gpu_power_limit: 500\n"
    )
    world.foretold = {"n1": [world.SWAPPINESS]} if changes else {}
    planning = planned(world)
    drained = list(disturbed(world.fleet(), planning.standing.receipts, planning.standing.visits))
    assert [(wave.out, wave.left.replicas) for wave in planning.plan.waves] == [
        (("r_a",), ("r_b",)),
        (("r_b",), ("r_a",)),
    ]
    assert [replica.name for replica in drained] == ["r_a", "r_b"]


def test_another_provision_has_every_replica_drained_once(world):
    behind_a_gateway(world)
    world.bootstrapped(serving=["r_a", "r_b"])
    for name, told in world.told.items():
        stages = {stage: replace(own, inputs={**own.inputs, "code": "old"}) for stage, own in told.stages.items()}
        world.told[name] = replace(told, stages=stages)
    assert [wave.out for wave in planned(world).plan.waves] == [("r_a",), ("r_b",)]


def test_what_the_run_does_not_drain_stays_whatever_changes(world):
    behind_a_gateway(world)
    world.bootstrapped(serving=["r_a", "r_b"])
    world.drifted("n1", world.SWAPPINESS)
    world.foretold = {"n1": [replace(world.SWAPPINESS, effects=("restart",))]}
    assert [wave.out for wave in planned(world).plan.waves] == [()]


def test_heads_outside_the_limit_are_asked_where_a_visit_drains(world):
    behind_a_gateway(world)
    world.bootstrapped(serving=["r_a", "r_b"])
    world.write("host_vars/n2.yml", "gpu_power_limit: 500\n")
    plan = planned(world, limit="r_a").plan
    assert (plan.unknown, plan.fewest) == ((), Capacity(("r_b",), 1000))


def test_tokens_are_unknown_where_a_head_tells_none(world):
    world.bootstrapped(serving=["r_a", "r_b"], kv_tokens=None)
    world.drifted("n1", world.DRIVER)
    world.foretold = {"n1": [world.DRIVER]}
    assert planned(world).plan.fewest == Capacity(("r_b",), None)


def test_capacity_counts_replicas_outside_the_limit(world):
    world.bootstrapped(serving=["r_a", "r_b"])
    world.drifted("n1", world.DRIVER)
    world.foretold = {"n1": [world.DRIVER]}
    assert planned(world, limit="r_a").plan.fewest == Capacity(("r_b",), 1000)
    world.outside["n3"] = HostReceipts("n3", trouble=Trouble("silent", "It does not answer.", "", unreachable=True))
    plan = planned(world, limit="r_a").plan
    assert (plan.fewest.replicas, plan.unknown, plan.hosts) == ((), ("r_b",), ("n1", "n2"))


@pytest.mark.parametrize("has_gateway", [False, True])
def test_a_worker_alone_takes_its_replica_out(world, has_gateway):
    if has_gateway:
        behind_a_gateway(world)
    world.bootstrapped(serving=["r_a", "r_b"])
    world.told["n2"] = replace(world.told["n2"], serving=False)
    world.drifted("n2", world.DRIVER)
    world.foretold = {"n2": [world.DRIVER]}
    plan = planned(world, limit="n2").plan
    assert [(wave.hosts, wave.out) for wave in plan.waves] == [(("n2",), ("r_a",))]
    assert (plan.now, plan.fewest) == (Capacity(("r_a", "r_b"), 2000), Capacity(("r_b",), 1000))


@pytest.mark.parametrize(("unreachable", "code"), [(True, exits.UNREACHABLE), (False, exits.FAILED)])
def test_a_host_in_trouble(world, unreachable, code):
    world.bootstrapped()
    world.told["n4"] = HostReceipts("n4", trouble=Trouble("x", "It refuses.", "Look.", unreachable=unreachable))
    planning = planned(world)
    assert planning.exit_code == code
    assert not planning.whole


def test_a_prediction_that_fails(world):
    world.bare()
    world.ended = {"n2": HostResult("n2", failure=Failure("swap", "Converge", "No room."))}
    assert planned(world).exit_code == exits.FAILED


def test_receipts_are_asked_for_the_stages_asked_for(world):
    world.bootstrapped()
    assert set(planned(world).plan.inputs["n1"]) == set(world.STAGES)
    assert isinstance(world.told["n1"].stages["host"], StageReceipt)
