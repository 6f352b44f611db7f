"""Which run a replica goes back to, and with which inventory; the files on disk are real, the runs are only told."""

from __future__ import annotations

import json
import stat
from dataclasses import replace

import pytest

from provision.converge import earlier
from provision.converge.inputs import inputs_of
from provision.converge.journal import Journal, now
from provision.converge.stages import STAGES
from provision.errors import UsageError
from provision.inventory import load_fleet

BASE = {"hardware_profile": "8xh20-96", "weights_repo": "org/model", "vllm_tensor_parallel_size": 8}
GOOD = {"n1": "changed", "n2": "ok", "n3": "ok"}


@pytest.fixture(autouse=True)
def _ids(state, monkeypatch):
    """Runs of the same second are told apart by the order in which they were made."""
    counter = iter(range(1000))
    monkeypatch.setattr("provision.converge.journal.random.token_hex", lambda _n: f"{next(counter):04x}")


@pytest.fixture
def run(inventory):
    """A run of the inventory as it is, which came to this: its id."""

    def make(code=0, *, fleet=None, stages=STAGES, check=False, lab=False, back_to=None, **statuses):
        fleet, statuses = fleet or load_fleet(inventory), {**GOOD, **statuses}
        facts = {"inventory": str(inventory), "hosts": list(GOOD), "stages": list(stages), "check": check, "lab": lab}
        with Journal({**facts, "back_to": back_to}) as journal:
            if not check:
                earlier.keep(fleet, journal)
            earlier.note(fleet, inputs_of(fleet), journal)
            said = {"exit_code": code, "seconds": 2.0, "interrupted": False, "error": None, "hosts": statuses}
            journal.event({"type": "run_finished", "time": now(), "run": journal.id, **said})
            journal.finish(code)
        return journal.id

    return make


@pytest.fixture
def say(inventory):
    """Write what the inventory says of all that serve."""
    (inventory / "group_vars").mkdir()
    (inventory / "group_vars/a.yml").write_text("vllm_pipeline_parallel_size: 2\n")

    def write(**variables):
        (inventory / "group_vars/serving.yml").write_text(json.dumps({**BASE, **variables}))

    write()
    return write


def replica(inventory, name="a"):
    fleet = load_fleet(inventory)
    return fleet, next(one for one in fleet.replicas if one.name == name)


def test_from_a_change_that_stands_it_goes_back_to_what_stood_before(inventory, say, run):
    first = run()
    say(vllm_stall_seconds=8)
    run()
    run()  # again, which changed nothing
    fleet, a = replica(inventory)
    found = earlier.earlier(fleet, a)
    assert found.id == first
    then = earlier.as_it_was(fleet, a, found)
    assert (then.path, then.replicas[0].head.variables.get("vllm_stall_seconds")) == (inventory, None)
    assert then.sources[0] == found.directory / "inventory/inventory"


def test_from_a_change_that_failed_it_goes_back_to_the_newest_that_stood(inventory, say, run):
    run()
    say(vllm_stall_seconds=8)
    second = run()
    say(vllm_stall_seconds=16)
    run(1, n1="failed", n2="held_back")
    assert earlier.earlier(*replica(inventory)).id == second
    assert earlier.earlier(*replica(inventory, "b")).id == second


def back(inventory, run, code=0, to=None, **statuses):
    """Go back as the command does: the id of the run to which."""
    fleet, a = replica(inventory)
    found = earlier.earlier(fleet, a, to)
    run(code, fleet=earlier.as_it_was(fleet, a, found), stages=earlier.STAGES, back_to=found.id, **statuses)
    return found.id


def test_going_back_keeps_the_inventory_of_then_and_goes_further_back_the_next_time(inventory, say, run):
    ids = []
    for seconds in (70, 80, 90):
        say(vllm_stall_seconds=seconds)
        ids.append(run())
    assert back(inventory, run) == ids[1]
    assert "80" in (earlier.runs()[0].directory / "inventory/inventory/group_vars/serving.yml").read_text()
    assert back(inventory, run) == ids[0]
    with pytest.raises(UsageError, match="No run"):
        back(inventory, run)
    say(vllm_stall_seconds=95)
    run(1, n1="failed")
    assert back(inventory, run) != ids[0]  # the last that stood is the one that went back, by the same inventory
    assert "70" in (earlier.runs()[0].directory / "inventory/inventory/group_vars/serving.yml").read_text()


def test_going_back_that_failed_is_gone_on_with(inventory, say, run):
    first = run()
    say(vllm_stall_seconds=80)
    run()
    assert back(inventory, run, 1, n1="failed") == first
    assert back(inventory, run) == first


def test_a_run_that_failed_at_something_else_is_no_reason_to_go_back(inventory, say, run):
    first = run()
    say(vllm_stall_seconds=80)
    run()
    failed = run(1, n1="failed")
    with pytest.raises(UsageError, match=f"Run {failed} was to make of a what it served before"):
        back(inventory, run)
    assert back(inventory, run, to=first) == first


def test_what_was_not_kept_is_not_passed_over_for_something_older(inventory, say, run):
    run()
    say(vllm_stall_seconds=80, vllm_api_key="in-clear-text-for-all")
    second = run()
    say(vllm_stall_seconds=90)
    run(1, n1="failed")
    with pytest.raises(UsageError, match=f"The inventory of {second} was not kept"):
        back(inventory, run)


def test_other_keys_and_other_ways_to_the_world_are_nothing_else_that_is_served(inventory, say, run, monkeypatch):
    monkeypatch.setenv("TOKEN", "hf_token-of-the-environment")
    first = run()
    say(vllm_stall_seconds=80)
    run()
    say(vllm_stall_seconds=80, site_http_proxy="http://10.1.1.1:3128", weights_token="{{ lookup('env', 'TOKEN') }}")
    run()
    assert back(inventory, run) == first


def test_a_rehearsal_proves_nothing_of_real_hosts(inventory, say, run):
    first = run(lab=True)
    with pytest.raises(UsageError, match="it was a rehearsal"):
        back(inventory, run, to=first)


def test_what_would_not_be_what_it_was_is_refused(inventory, say, run, monkeypatch):
    monkeypatch.setenv("STALL", "70")
    say(vllm_stall_seconds="{{ lookup('env', 'STALL') | int }}")
    first = run()
    say()
    run()
    monkeypatch.setenv("STALL", "71")
    with pytest.raises(UsageError, match=f"{first}: by the same inventory it would not be today"):
        back(inventory, run)


@pytest.mark.parametrize(
    ("text", "clear"),
    [
        ("vllm_api_key: of-somebody-who-left\n", True),
        ("ansible_become_pass: 'it''s'\n", True),
        ("[gone]\nn9 ansible_ssh_pass=hunter2\n", True),
        ("vllm_api_key: |\n  in a block\n", True),
        ('{"vllm_api_key": "of-json"}', True),
        ('vllm_api_key: ""  # none\n', False),
        ("vllm_api_key: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  3132\n", False),
        ('vllm_api_key: "{{ vault_key }}" # elsewhere\n', False),
        ("vllm_stall_seconds: 70\n", False),
    ],
)
def test_a_secret_is_known_by_its_name_where_nobody_has_it(inventory, text, clear):
    found = earlier._secret({"group_vars/gone.yml": text.encode()}, load_fleet(inventory))
    assert bool(found) is clear


def test_where_only_one_stage_was_changed_that_counts_as_a_change_and_not_as_what_stood(inventory, say, run):
    first = run()
    say(vllm_stall_seconds=8)
    run(stages=["vllm"])
    assert earlier.earlier(*replica(inventory)).id == first
    say()
    run()
    with pytest.raises(UsageError, match="Take the change out"):
        earlier.earlier(*replica(inventory))


def test_what_changed_nothing_and_what_is_not_about_serving_is_passed_over(inventory, say, run):
    first = run()
    say(vllm_stall_seconds=8)
    run()
    say(vllm_stall_seconds=9)
    run(check=True)
    run(stages=["driver"])
    assert earlier.earlier(*replica(inventory)).id == first


def test_a_run_can_be_named_if_it_left_the_replica_standing(inventory, say, run):
    first = run()
    say(vllm_stall_seconds=8)
    run()
    say(vllm_stall_seconds=9)
    third = run(1, n2="failed", n1="held_back")
    assert earlier.earlier(*replica(inventory), first[-4:]).id == first
    with pytest.raises(UsageError, match="did not leave all of a standing"):
        earlier.earlier(*replica(inventory), third)
    assert earlier.earlier(*replica(inventory, "b"), third).id == third


@pytest.mark.parametrize(
    "secret",
    [{"vllm_api_key": "in-clear-text-for-all"}, {"site_http_proxy": "http://bob:in-clear-text-for-all@proxy:3128"}],
    ids=["key", "URL"],
)
def test_no_secret_in_clear_text_is_copied_and_the_run_says_why(inventory, say, run, secret):
    say(**secret)
    first = run()
    directory = earlier.runs()[0].directory
    assert "in-clear-text" not in "".join(path.read_text() for path in directory.rglob("*") if path.is_file())
    assert not (directory / "inventory").exists()
    say(**secret, vllm_stall_seconds=8)
    run()
    with pytest.raises(UsageError, match=rf"{first} was not kept: .*serving\.yml holds a secret in clear text"):
        earlier.earlier(*replica(inventory))


def test_a_key_that_lies_there_is_not_copied_either_and_hidden_files_never_are(inventory, say, run, monkeypatch):
    (inventory / "files").mkdir()
    for name in (".vault-password", "vault-password.txt", "files/vault-password"):
        (inventory / name).write_text("open-sesame\n")
    password = (inventory / "files/vault-password").resolve()
    monkeypatch.setattr(earlier, "password_files", lambda: frozenset([password]))
    run()
    kept = earlier.runs()[0].directory / "inventory"
    assert sorted(path.name for path in kept.rglob("*") if path.is_file()) == ["a.yml", "hosts.yml", "serving.yml"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept.rglob("*")} == {0o700, 0o600}
    (inventory / "host_vars").mkdir()
    (inventory / "host_vars/n1.yml").write_text("a: |\n  -----BEGIN OPENSSH PRIVATE KEY-----\n")
    run()
    assert not (earlier.runs()[0].directory / "inventory").exists()


def test_what_is_larger_than_any_inventory_is_not_copied(inventory, say, run, monkeypatch):
    monkeypatch.setattr(earlier, "LARGEST", 100)
    run()
    assert "larger than" in earlier.runs()[0].facts["not_kept"]


def test_an_inventory_that_is_one_file_is_kept_with_what_belongs_to_it(inventory, say, run, tmp_path):
    fleet = load_fleet(inventory / "hosts.yml")
    (inventory / "notes.txt").write_text("not of the inventory\n")
    with Journal({"inventory": str(fleet.path)}) as journal:
        earlier.keep(fleet, journal)
        journal.finish(0)
    kept = journal.directory / "inventory"
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*.*")) == [
        "group_vars/a.yml",
        "group_vars/serving.yml",
        "hosts.yml",
    ]
    assert load_fleet(kept / "hosts.yml").replicas[0].head.variables["vllm_tensor_parallel_size"] == 8


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"vllm_port": 9000}, "where it answers"),
        ({"vllm_served_model_name": "another"}, "vllm_served_model_name"),
        ({"vllm_api_key": "{{ lookup('env', 'KEY') }}"}, "vllm_api_key"),
    ],
)
def test_what_others_know_of_a_replica_does_not_go_back_with_it(inventory, say, run, monkeypatch, change, moved):
    monkeypatch.setenv("KEY", "a-key-from-the-environment")
    first = run()
    say(**change)
    run()
    fleet, b = replica(inventory, "b")
    with pytest.raises(UsageError, match=f"{first}: since then .*{moved}.* changed"):
        earlier.as_it_was(fleet, b, earlier.earlier(fleet, b, first))


def test_where_its_hosts_or_the_gateways_are_others_it_does_not_go_back(inventory, say, run):
    hosts = inventory / "hosts.yml"
    before = hosts.read_text().replace("127.0.0.", "10.9.9.")
    hosts.write_text(before)
    first = run()
    for text, moved in (
        (before.replace("10.9.9.3", "10.9.9.9"), "the hosts of b"),
        (before + "gateway: {hosts: {gw: {ansible_host: 10.9.9.8}}}\n", "the gateways"),
    ):
        hosts.write_text(text)
        fleet, b = replica(inventory, "b")
        with pytest.raises(UsageError, match=f"since then .*{moved}.* changed"):
            earlier.as_it_was(fleet, b, earlier.earlier(fleet, b, first))


def test_a_replica_that_was_not_there_then_does_not_go_back(inventory, say, run):
    run()
    fleet, a = replica(inventory)
    with pytest.raises(UsageError, match="the hosts of new"):
        earlier.as_it_was(replace(fleet, replicas=(replace(a, name="new"),)), replace(a, name="new"), earlier.runs()[0])
