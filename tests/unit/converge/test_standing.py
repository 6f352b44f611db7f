"""What is visited, why, and in which waves, decided from what hosts tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import yaml

from provision.converge import STAGES
from provision.converge.standing import Standing, decide, less_reboots, mended, reboot_reasons
from provision.drift import Busy, Finding, HostReceipts, StageReceipt
from provision.inventory import Fleet, load_fleet
from provision.ssh.trouble import Trouble

HOSTS = ("n1", "n2", "n3", "n4")
SERVING = tuple(stage for stage in STAGES if stage != "gateway")  # where the inventory names no gateway
INPUTS = {host: {stage: {"code": "c", "name": "v"} for stage in STAGES} for host in HOSTS}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Replica a of two hosts, b and c of one each."""
    path = tmp_path_factory.mktemp("inventory")
    members = {"a": ("n1", "n2"), "b": ("n3",), "c": ("n4",)}
    tree = {
        group: {"hosts": {name: {"ansible_host": f"10.0.0.{name[1]}"} for name in names}}
        for group, names in members.items()
    }
    serving = {"children": tree, "vars": {"hardware_profile": "8xh20-96", "weights_repo": "org/model"}}
    serving["vars"] |= {"vllm_tensor_parallel_size": 8}
    for group in tree.values():
        group["vars"] = {"vllm_pipeline_parallel_size": len(group["hosts"])}
    (path / "hosts.yml").write_text(yaml.safe_dump({"serving": serving}, sort_keys=False))
    return load_fleet(path)


def finding(stage: str, effect: str = "none") -> Finding:
    return Finding(stage, "kernel_tunables", "Set vm.swappiness to 1.", "vm.swappiness", "60\n", "1\n", effect)


def receipt(stage: str, **more: object) -> StageReceipt:
    return StageReceipt(stage, INPUTS["n1"][stage], "2026-11-22T06:00:00Z", **more)  # type: ignore[arg-type]


def told(host: str, *broken: StageReceipt, **more: object) -> HostReceipts:
    stages = {stage: receipt(stage) for stage in SERVING} | {own.stage: own for own in broken}
    return HostReceipts(host, stages=stages, **more)  # type: ignore[arg-type]


def ask(fleet: Fleet, *hosts: HostReceipts, stages: tuple[str, ...] = STAGES, full: bool = False) -> Standing:
    answers = {host: told(host) for host in HOSTS} | {host.host: host for host in hosts}
    return decide(fleet, answers, INPUTS, stages, full=full)


def visits(standing: Standing) -> Mapping[str, tuple[str, ...]]:
    return {host: standing.visited(host) for host in standing.visits}


def test_what_stands_is_not_visited(fleet: Fleet) -> None:
    standing = ask(fleet)
    assert visits(standing) == {}
    assert standing.waves == ()


def test_all_are_visited_if_asked(fleet: Fleet) -> None:
    assert visits(ask(fleet, full=True)) == dict.fromkeys(HOSTS, SERVING)


def test_a_host_that_was_never_bootstrapped(fleet: Fleet) -> None:
    standing = ask(fleet, HostReceipts("n3"))
    assert visits(standing) == {"n3": SERVING}
    assert {visit.kind for visit in standing.visits["n3"]} == {"first"}


def test_a_stage_that_no_run_finished(fleet: Fleet) -> None:
    host = told("n3")
    without = HostReceipts("n3", stages={stage: own for stage, own in host.stages.items() if stage != "swap"})
    standing = ask(fleet, without)
    assert visits(standing) == {"n3": ("preflight", "swap")}
    assert standing.visits["n3"][1].kind == "unfinished"


@pytest.mark.parametrize(
    "flaw",
    [{"findings": (finding("host"),)}, {"facts": ("sha256",)}, {"error": "systemd does not answer."}],
    ids=["finding", "fact", "error"],
)
def test_drift_is_visited_alone(fleet: Fleet, flaw: dict[str, object]) -> None:
    standing = ask(fleet, told("n3", receipt("host", **flaw)))
    assert visits(standing) == {"n3": ("host",)}
    assert standing.visits["n3"][0].kind == "drift"


def test_changed_inputs_are_named(fleet: Fleet) -> None:
    old = StageReceipt("host", {"code": "c", "name": "w", "gone": "x"}, "")
    (check, visit) = ask(fleet, told("n3", old)).visits["n3"]
    assert (check.stage, visit.stage, visit.kind) == ("preflight", "host", "inputs")
    assert visit.names == ("gone", "name")


def test_changed_code_is_a_reason_of_its_own(fleet: Fleet) -> None:
    old = StageReceipt("host", {"code": "b", "name": "v"}, "")
    assert ask(fleet, told("n3", old)).visits["n3"][1].kind == "code"


@pytest.mark.parametrize(
    ("stage", "followers"),
    [
        ("driver", {"gpu", "fabric", "ray", "vllm"}),
        ("serving_env", {"fabric", "ray", "vllm"}),
        ("weights", {"vllm"}),
        ("ray", {"vllm"}),
        ("swap", set()),
    ],
)
def test_what_stands_on_a_changed_stage_follows(fleet: Fleet, stage: str, followers: set[str]) -> None:
    standing = ask(fleet, told("n3", StageReceipt(stage, {}, "")))
    assert set(standing.visited("n3")) == {"preflight", stage} | followers


def test_a_harmless_repair_takes_no_follower(fleet: Fleet) -> None:
    assert visits(ask(fleet, told("n3", receipt("driver", findings=(finding("driver"),))))) == {"n3": ("driver",)}


def test_a_repair_that_restarts_does(fleet: Fleet) -> None:
    standing = ask(fleet, told("n3", receipt("driver", findings=(finding("driver", "restart"),))))
    assert standing.visited("n3") == ("driver", "gpu", "fabric", "ray", "vllm")


def test_a_replica_goes_together_through_ray_and_vllm(fleet: Fleet) -> None:
    standing = ask(fleet, told("n2", receipt("ray", facts=("sha256",))))
    assert visits(standing) == {"n1": ("ray", "vllm"), "n2": ("ray", "vllm")}


def test_a_host_at_work_is_visited_whatever_it_says(fleet: Fleet) -> None:
    standing = ask(fleet, told("n4", busy=Busy(42, "apt-get", "2026-11-22T06:00:00Z")))
    assert standing.visited("n4") == SERVING


def test_a_host_that_cannot_be_asked_is_in_no_wave(fleet: Fleet) -> None:
    trouble = Trouble("unreachable", "does not answer", None, unreachable=True)
    standing = ask(fleet, HostReceipts("n3", trouble=trouble), HostReceipts("n4"))
    assert standing.waves == (("n4",),)


def test_only_the_stages_asked_for(fleet: Fleet) -> None:
    standing = ask(fleet, HostReceipts("n3"), stages=("host", "swap"))
    assert visits(standing) == {"n3": ("host", "swap")}


def test_replicas_that_serve_are_disturbed_one_after_another(fleet: Fleet) -> None:
    standing = ask(fleet, *(told(host, StageReceipt("driver", {}, ""), serving=True) for host in HOSTS))
    assert standing.waves == (("n1", "n2"), ("n3",), ("n4",))


def test_what_does_not_serve_goes_first_and_together(fleet: Fleet) -> None:
    stale = StageReceipt("vllm", {}, "")
    serving = told("n1", stale, serving=True), told("n2", stale, serving=True)
    standing = ask(fleet, *serving, HostReceipts("n3"), HostReceipts("n4"))
    assert standing.waves == (("n3", "n4"), ("n1", "n2"))


def test_a_replica_serves_if_any_of_its_hosts_does(fleet: Fleet) -> None:
    stale = StageReceipt("vllm", {}, "")
    standing = ask(fleet, told("n1", stale), told("n2", stale, serving=True), told("n3", stale, serving=True))
    assert standing.waves == (("n1", "n2"), ("n3",))


def test_repairs_that_disturb_no_one_share_a_wave(fleet: Fleet) -> None:
    drifted = (told(host, receipt("host", findings=(finding("host"),)), serving=True) for host in HOSTS)
    assert ask(fleet, *drifted).waves == (HOSTS,)


def test_a_host_can_mend_what_nobody_notices(fleet: Fleet) -> None:
    broken = receipt("host", findings=(finding("host"), finding("host", "reload")))
    assert ask(fleet, told("n1", broken)).mendable() == {"n1": ("host",)}


@pytest.mark.parametrize(
    "broken",
    [
        receipt("driver", findings=(finding("driver", "restart"),)),
        receipt("host", findings=(finding("host"),), error="It cannot be told."),
        receipt("host", findings=(finding("host"),), facts=("sha256",)),
        receipt("weights", findings=(finding("weights"),)),
        StageReceipt("host", {"code": "another"}, "2026-11-22T06:00:00Z", (finding("host"),)),
    ],
    ids=["noticed", "error", "fact", "long work", "another input"],
)
def test_what_only_a_run_can_set_right(fleet: Fleet, broken: StageReceipt) -> None:
    standing = ask(fleet, told("n1", broken))
    assert broken.stage in standing.visited("n1")
    assert standing.mendable() == {}


def test_all_that_was_asked_for_is_visited_and_not_mended(fleet: Fleet) -> None:
    assert ask(fleet, told("n1", receipt("host", findings=(finding("host"),))), full=True).mendable() == {}


def test_what_stands_after_mending_needs_no_visit(fleet: Fleet) -> None:
    broken = receipt("host", findings=(finding("host"),))
    standing = ask(fleet, told("n1", broken), told("n2", broken))
    silent = HostReceipts("n2", Trouble("silent", "It fell silent.", ""))
    assert visits(mended(fleet, standing, [told("n1"), silent], STAGES)) == {"n2": ("host",)}


@pytest.fixture(scope="module")
def guarded(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """The same, behind a gateway that serves (n4) and one that does not."""
    path = tmp_path_factory.mktemp("guarded")
    tree = yaml.safe_load((fleet.path / "hosts.yml").read_text())
    tree["gateway"] = {"hosts": {"n4": None, "gw": {"ansible_host": "10.0.0.9"}}}
    (path / "hosts.yml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return load_fleet(path)


def test_a_gateway_goes_through_what_concerns_it(guarded: Fleet) -> None:
    names = [host.name for host in guarded.managed]
    assert names == [*HOSTS, "gw"]
    inputs = dict.fromkeys(names, INPUTS["n1"])
    bare = {name: HostReceipts(name) for name in names}
    found = visits(decide(guarded, bare, inputs, STAGES))
    assert found == {**dict.fromkeys(HOSTS, SERVING), "n4": STAGES, "gw": ("site", "gateway", "drift")}


def test_who_has_a_gateway_that_the_inventory_no_longer_names_has_it_taken_away(fleet: Fleet) -> None:
    behind = replace(receipt("gateway"), inputs={"replicas": "two"})
    assert visits(ask(fleet, told("n1", behind), told("n2"))) == {"n1": ("preflight", "gateway")}


def test_a_gateway_is_changed_before_the_replicas_that_are_disturbed(guarded: Fleet) -> None:
    inputs = dict.fromkeys((*HOSTS, "gw"), INPUTS["n1"])
    old = {"gateway": replace(receipt("gateway"), inputs={"code": "another"})}
    answers = {host: told(host, receipt("gateway"), serving=True) for host in HOSTS}
    answers["gw"] = HostReceipts("gw", stages={"site": receipt("site"), "drift": receipt("drift"), **old})
    answers["n3"] = told(
        "n3", receipt("gateway"), receipt("vllm", findings=(finding("vllm", "restart"),)), serving=True
    )
    standing = decide(guarded, answers, inputs, STAGES)
    assert standing.waves == (("gw",), ("n3",))
    assert visits(standing) == {"gw": ("gateway",), "n3": ("vllm",)}


REBOOT = Finding("driver", "host_reboot", "Rebooted: libc6 asked.", "boot", "libc6 asked\n", "none\n", "reboot")


def test_a_reboot_that_is_left_to_another_run_is_no_reason_to_visit(fleet: Fleet) -> None:
    waits = receipt("driver", findings=(REBOOT,))
    standing = ask(fleet, told("n3", waits), told("n4", waits))
    assert set(visits(standing)) == {"n3", "n4"}
    assert reboot_reasons(standing.receipts["n3"]) == ("libc6 asked",)
    less = less_reboots(fleet, standing, {"n3"}, STAGES, full=False)
    assert visits(less) == {"n4": ("driver", "gpu", "fabric", "ray", "vllm")}
    assert less.waves == (("n4",),)


def test_what_else_differs_there_is_visited_all_the_same(fleet: Fleet) -> None:
    both = receipt("driver", findings=(finding("driver"), REBOOT))
    less = less_reboots(fleet, ask(fleet, told("n3", both)), {"n3"}, STAGES, full=False)
    assert visits(less) == {"n3": ("driver",)}
    assert less.mendable() == {"n3": ("driver",)}
    assert set(visits(less_reboots(fleet, less, {"n3"}, ("host",), full=True))) == set(HOSTS)
