"""A plan is done exactly, or refused with the name of what moved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provision import exits
from provision.converge import HostResult
from provision.converge.result import Failure
from provision.drift import HostReceipts
from provision.errors import PlanMovedError
from provision.plan.apply import Applied, apply
from provision.plan.make import make_plan
from provision.plan.model import Options, Plan
from provision.ssh.trouble import Trouble

FILE = Path("plan.json")


@pytest.fixture
def plan(world) -> Plan:
    """One replica of two that serve is to be disturbed, by a driver that somebody changed by hand."""
    world.bootstrapped(serving=["r_a", "r_b"])
    world.drifted("n1", world.DRIVER)
    world.foretold = {"n1": [world.DRIVER]}
    return planned(world)


def planned(world, **options) -> Plan:
    plan = make_plan(world.fleet(), Options(**{"stages": world.STAGES, **options})).plan
    world.runs.clear()
    return plan


def applied(world, plan: Plan) -> Applied:
    return apply(plan, world.fleet(), FILE, forks=3)


def refused(world, plan: Plan, *words: str) -> PlanMovedError:
    with pytest.raises(PlanMovedError) as caught:
        applied(world, plan)
    assert not [run for run in world.runs if not run["check"]]
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_what_was_planned_is_done(world, plan):
    outcome = applied(world, plan)
    assert outcome.deviations == ()
    assert outcome.result.exit_code == exits.OK
    assert [(run["check"], run["forks"], run["full"]) for run in world.runs] == [(True, 3, False), (False, 3, False)]
    assert world.runs[1]["reboots"] == ("n1",)  # and no others


def test_a_plan_without_a_reboot_allows_none(world):
    world.bootstrapped(serving=["r_a", "r_b"])
    restart = replace(world.DRIVER, effects=("restart",))
    world.drifted("n1", restart)
    world.foretold = {"n1": [restart]}
    applied(world, planned(world))
    assert world.runs[1]["reboots"] == ()


def test_a_plan_that_is_done_already(world, plan):
    world.bootstrapped()
    assert applied(world, plan).result is None
    assert not world.runs


def test_a_plan_without_changes(world):
    world.bootstrapped()
    assert applied(world, planned(world)) == Applied(None, hosts=4)


def test_a_full_plan_that_is_done_already(world):
    world.bare()
    world.foretold = {"n1": [world.SWAP]}
    plan = planned(world, full=True)
    world.foretold = {}
    assert applied(world, plan).result is None


def test_the_inventory_moved(world, plan):
    world.write("host_vars/n2.yml", "gpu_locked_clocks: {3: 1900}\n")
    error = refused(world, plan, "plan.json", "n2: gpu_locked_clocks", "host_vars/n2.yml:1")
    assert error.exit_code == exits.PENDING
    assert "provision plan" in str(error)
    assert "--stage host,swap,driver,gpu --out plan.json" in str(error)
    assert not world.runs


def test_a_variable_is_gone(world, plan):
    world.write("host_vars/n2.yml", "{}\n")
    refused(world, plan, "n2: gpu_locked_clocks", "no file of the inventory sets it now")


def test_the_versions_moved(world, plan):
    world.write("stack.lock.yml", (world.path / "stack.lock.yml").read_text().replace("126.20", "126.21"))
    refused(world, plan, "stack.driver", "stack.lock.yml:2")


def test_the_code_moved(world, plan):
    inputs = {
        host: {stage: {**names, "code": "0" * 16} for stage, names in own.items()} for host, own in plan.inputs.items()
    }
    error = refused(world, replace(plan, inputs=inputs, version="0.0.1"), "provision 0.0.1 made it")
    assert str(error).count("roles") == 1


def test_hosts_came_and_went(world, plan):
    hosts = (world.path / "hosts.yml").read_text()
    world.write("hosts.yml", hosts.replace("n4: {ansible_host: 10.0.0.4}", "n5: {ansible_host: 10.0.0.5}"))
    world.told["n5"] = HostReceipts("n5")
    refused(world, plan, "n5 was not there", "n4 is not there any more")


def test_more_has_drifted(world, plan):
    world.drifted("n2", world.SWAPPINESS)
    refused(world, plan, "n2: host", "vm.swappiness")


def test_somebody_has_repaired_it(world, plan):
    world.drifted("n3", world.SWAPPINESS)
    world.told["n1"] = replace(world.told["n3"], host="n1", stages=world.told["n2"].stages)
    refused(world, plan, "n1: driver stands now", "n3: host")


def test_another_reason(world, plan):
    world.told["n1"] = replace(world.told["n1"], stages={})
    refused(world, plan, "n1: driver would be visited for another reason", "drifted")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"before": "580.95.06"}, ["nvidia-driver is 580.95.06", "in the plan: 580.95.05"]),
        ({"after": "580.126.21"}, ["nvidia-driver would become 580.126.21"]),
        ({"effect": "restart"}, ["nvidia-driver has the effect restart", "in the plan: reboot"]),
        ({"action": "Removed it."}, ["nvidia-driver: now: Removed it."]),
    ],
)
def test_the_same_resource_has_moved(world, plan, fields, words):
    given = {"action": world.DRIVER.actions[0], "before": "580.95.05", "after": "580.126.20", "effect": "reboot"}
    world.foretold = {"n1": [world.change("driver", resource="nvidia-driver", **{**given, **fields})]}
    refused(world, plan, "n1: driver", *words)


def test_a_run_would_do_more_or_less(world, plan):
    world.foretold = {"n1": [world.DRIVER, world.SWAP]}
    refused(world, plan, "n1: swap: /swapfile: not in the plan")
    world.foretold = {"n1": [world.SWAP]}
    refused(world, plan, "n1: driver: nvidia-driver: no longer to do", "/swapfile")


def test_a_replica_that_the_plan_counts_on_has_gone(world, plan):
    for host in ("n3", "n4"):
        world.told[host] = replace(world.told[host], serving=False)
    refused(world, plan, "r_b does not serve now; the plan counts on it")


def test_a_replica_has_begun_to_serve(world):
    world.bootstrapped(serving=["r_b"])
    world.drifted("n1", world.DRIVER)
    world.foretold = {"n1": [world.DRIVER]}
    plan = planned(world)
    world.told["n1"] = replace(world.told["n1"], serving=True)
    refused(world, plan, "the waves are other ones", "r_a out")


@pytest.mark.parametrize(("unreachable", "code"), [(True, exits.UNREACHABLE), (False, exits.FAILED)])
def test_a_host_in_trouble(world, plan, unreachable, code):
    world.told["n4"] = HostReceipts("n4", trouble=Trouble("x", "It does not answer.", "Look.", unreachable=unreachable))
    assert refused(world, plan, "n4: It does not answer.", "Look.").exit_code == code


def test_a_prediction_that_fails(world, plan):
    world.ended = {"n1": HostResult("n1", failure=Failure("driver", "Converge", "No room."))}
    refused(world, plan, "n1: No room.")


def test_ctrl_c_while_it_is_foretold(world, plan):
    run = world.bootstrap
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "provision.plan.make.bootstrap", lambda *given, **options: replace(run(*given, **options), interrupted=True)
        )
        with pytest.raises(KeyboardInterrupt):
            applied(world, plan)
    assert [run["check"] for run in world.runs] == [True]


def test_another_controller_was_faster(world, plan):
    world.before_lease = lambda: world.drifted("n3", world.SWAPPINESS)
    refused(world, plan, "n3: host stood, and would be visited now", "nothing was done")


def test_more_was_done_than_planned(world, plan):
    world.done = {"n1": [world.DRIVER], "n3": [world.SWAPPINESS]}
    assert applied(world, plan).deviations == (
        "n3: host: Set vm.swappiness to 1 (it was 60). (effect none) was done, and is not in the plan",
    )


def test_less_was_done_than_planned(world, plan):
    world.done = {}
    (line,) = applied(world, plan).deviations
    assert line.endswith("is in the plan, and was not done")


def test_with_another_effect_than_planned(world, plan):
    world.done = {"n1": [replace(world.DRIVER, effects=("restart",))]}
    assert len(applied(world, plan).deviations) == 2


def test_what_a_failed_host_did_not_do_is_told_by_its_failure(world, plan):
    world.done = {}
    run = world.bootstrap

    def fails(fleet, *, check=False, **options):
        world.ended = {} if check else {"n1": HostResult("n1", failure=Failure("driver", "Converge", "No room."))}
        return run(fleet, check=check, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("provision.plan.apply.bootstrap", fails)
        outcome = applied(world, plan)
    assert outcome.result.exit_code == exits.FAILED
    assert outcome.deviations == ()


def test_a_long_list_is_cut(world):
    world.bare()
    changes = [world.change("host", f"Set x{number}.", f"x{number}", "0", "1") for number in range(20)]
    world.foretold = {"n1": changes}
    plan = planned(world)
    world.foretold = {"n1": [replace(item, effects=("reload",)) for item in changes]}
    refused(world, plan, "and 8 more")
