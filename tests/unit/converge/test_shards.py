"""A run in shards, on this machine alone: the cluster of controllers is this process, one shard after another."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

import pytest

from provision import exits
from provision.converge.bootstrap import bootstrap
from provision.converge.cluster import LostError
from provision.converge.merge import Merger
from provision.converge.sameness import differences, manifest
from provision.converge.shard import Mailbox, Order, Outbox, check, run_shard
from provision.converge.shards import run_shards, split
from provision.converge.stages import STAGES as ALL
from provision.converge.standing import Standing, Visit
from provision.drift import HostReceipts
from provision.errors import LockedError, UsageError
from provision.inventory import load_fleet

STAGES = ["host", "swap"]


class Here:
    """What a Cluster is to `run_shards`; `lose` are hosts whose controller is lost."""

    size = 2

    def __init__(self, lose=()):
        self.lose, self.mailbox, self.orders, self.results = lose, Mailbox(), [], []

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        pass

    def compare(self, order):
        assert check(order) == ""

    def submit(self, order):
        self.orders.append(order)
        is_lost = set(self.lose) & set(order.hosts)
        self.results.append(LostError("its node died") if is_lost else run_shard(order, self.mailbox.give))
        return len(self.results) - 1

    def wait(self, tasks, _seconds):
        return tasks

    def take(self, stop):
        return self.mailbox.take(stop)

    def result(self, task):
        if isinstance(self.results[task], Exception):
            raise self.results[task]
        return self.results[task]


class Stand:
    """What stands: nothing, until a run of the host's own has asked once."""

    def __init__(self, waves=(), standing=()):
        self.waves, self.standing, self.asked = waves, standing, []

    def __call__(self, fleet, hosts, stages, **how):
        names = [host.name for host in hosts]
        new = [name for name in names if name not in self.standing and self.asked.count(name) < 2]
        self.asked += names
        visits = {name: tuple(Visit(stage, "first", "the test says so") for stage in stages) for name in new}
        waves = [wave for wave in self.waves if set(wave) <= set(new)] or [tuple(new)] * bool(new)
        inputs = {host.name: {stage: {} for stage in ALL} for host in fleet.managed}
        return Standing({name: HostReceipts(name) for name in names}, inputs, visits, tuple(waves))


def touch(path):
    content = {"dest": f"{path}-{{{{ inventory_hostname }}}}", "content": "x\n", "mode": "0644"}
    return {"name": "Write the file", "ansible.builtin.copy": content}


@pytest.fixture
def cluster(monkeypatch):
    """The cluster of the next run, made when it begins."""

    def make(stand=None, lose=()):
        here, stand = Here(lose), stand or Stand()
        for module in ("bootstrap", "shards"):
            monkeypatch.setattr(sys.modules[f"provision.converge.{module}"], "stand", stand)
        monkeypatch.setattr(sys.modules["provision.converge.shards"], "Cluster", lambda _address: here)
        return here

    return make


def told(events):
    """What matters of events, whatever their order between hosts."""
    keys = ("type", "host", "stage", "task", "status", "actions", "changes", "visits", "hosts")
    passing = ("seconds", "time", "run")
    assert all(event[key] is not None for event in events for key in passing if key in event)
    return sorted(json.dumps({key: event.get(key) for key in keys}, sort_keys=True) for event in events)


def test_split_keeps_replicas_whole_and_shards_alike(content, inventory, state):
    content()
    fleet = load_fleet(inventory)
    assert split(fleet, ["n1", "n2", "n3"], 2) == [("n1", "n2"), ("n3",)]
    assert split(fleet, ["n1", "n2", "n3"], 9) == [("n1", "n2"), ("n3",)]
    assert split(fleet, ["n3", "n2", "n1"], 1) == [("n3", "n2", "n1")]


def test_shards_come_to_what_one_run_comes_to(content, inventory, state, tmp_path, cluster):
    content(host=[touch(tmp_path / "made")])
    fleet, events, lines = load_fleet(inventory), [], []
    here = cluster()
    result = run_shards(fleet, stages=STAGES, on_event=events.append, on_text=lines.append)
    assert [order.hosts for order in here.orders] == [("n1", "n2"), ("n3",)]
    assert sorted(path.name for path in tmp_path.glob("made-*")) == ["made-n1", "made-n2", "made-n3"]
    assert any(line.startswith("[shard 0] TASK") for line in lines)

    for path in tmp_path.glob("made-*"):
        path.unlink()
    cluster(stand=Stand())
    sys.modules["provision.converge.bootstrap"].stand.asked += fleet.hosts
    local_events = []
    local = bootstrap(fleet, stages=STAGES, on_event=local_events.append)
    assert {name: (host.status, host.changes, host.visited) for name, host in result.hosts.items()} == {
        name: (host.status, host.changes, host.visited) for name, host in local.hosts.items()
    }
    per_host = [event for event in events if "host" in event]
    assert told(per_host) == told([event for event in local_events if "host" in event])
    kinds = [event["type"] for event in events]
    assert [kinds[0], kinds[-1]] == ["run_started", "run_finished"]
    assert {kinds.count("run_started"), kinds.count("run_finished"), kinds.count("wave_started")} == {1}

    assert {event["run"] for event in events} == {result.run}
    kept = [json.loads(line) for line in (result.directory / "events.jsonl").read_text().splitlines()]
    assert kept == events
    assert json.loads((result.directory / "run.json").read_text())["engine"] == "ray"
    assert len(list((state / "runs").iterdir())) == 2
    assert not list((state / "shards").iterdir())


def test_a_wave_that_fails_ends_the_run(content, inventory, state, tmp_path, cluster):
    failing = {"name": "Break", "ansible.builtin.fail": {"msg": "No."}, "when": "inventory_hostname == 'n1'"}
    content(host=[failing, touch(tmp_path / "made")])
    here = cluster(Stand(waves=[("n1", "n2"), ("n3",)]))
    result = run_shards(load_fleet(inventory), stages=STAGES)
    assert [order.hosts for order in here.orders] == [("n1", "n2")]
    assert result.exit_code == exits.FAILED
    assert {name: host.status for name, host in result.hosts.items()} == {
        "n1": "failed",
        "n2": "changed",
        "n3": "held_back",
    }
    assert result.hosts["n3"].spared == "n1"
    assert not (tmp_path / "made-n3").exists()


def test_what_stands_is_given_to_no_shard(content, inventory, state, cluster):
    content()
    here = cluster(Stand(standing=("n1", "n2")))
    result = run_shards(load_fleet(inventory), stages=STAGES)
    assert [order.hosts for order in here.orders] == [("n3",)]
    assert {host.status for host in result.hosts.values()} == {"ok"}


def test_hosts_that_another_run_holds(content, inventory, state, cluster, monkeypatch):
    content()
    cluster()

    def held(*_arguments, **_options):
        raise LockedError("n1 is being changed by another run.")

    monkeypatch.setattr(sys.modules["provision.converge.shard"], "bootstrap", held)
    with pytest.raises(LockedError, match="n1 is being changed"):
        run_shards(load_fleet(inventory), stages=STAGES)


def test_a_lost_controller_fails_its_hosts_alone(content, inventory, state, cluster):
    content()
    cluster(lose=("n3",))
    result = run_shards(load_fleet(inventory), stages=STAGES)
    assert {name: host.status for name, host in result.hosts.items()} == {"n1": "ok", "n2": "ok", "n3": "failed"}
    assert "its node died" in result.hosts["n3"].failure.message


def order(fleet, tmp_path, **changes):
    given = {"number": 0, "run": "r", "directory": tmp_path, "sources": fleet.sources, "hosts": ("n3",)}
    return Order(**given | {"manifest": manifest(fleet.sources), "options": {"stages": ("host",)}} | changes)


def test_another_inventory_is_refused_by_name(content, inventory, state, tmp_path, monkeypatch):
    content()
    monkeypatch.chdir(tmp_path)
    fleet = load_fleet(inventory)
    asked = order(fleet, tmp_path)
    assert check(asked) == ""
    (inventory / "hosts.yml").write_text("serving: {}\n")
    assert check(asked) == f"{inventory / 'hosts.yml'} differs"
    assert f"{inventory / 'hosts.yml'} differs" in run_shard(asked, lambda _items: 0).reason
    assert str(tmp_path / "nowhere") in check(order(fleet, tmp_path, directory=tmp_path / "nowhere"))


def test_differences_name_versions_first_and_not_every_file():
    here = {"provision": "1.0", "a": "1", "b": "1", "c": "1", "d": "1", "e": "1"}
    assert differences(here, dict(here)) == ""
    assert "runs provision 0.9, this controller 1.0" in differences(here, {**here, "provision": "0.9"})
    assert differences(here, {"provision": "1.0", "a": "2", "x": "1"}) == (
        "a differs, b is missing there, c is missing there and 3 more files"
    )


def test_what_the_manifest_knows(content, inventory, state, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    root = content()
    before = manifest((inventory,))
    (root / "roles/host/tasks/main.yml").write_text("[]  # other\n")
    (inventory / "group_vars").mkdir()
    (inventory / "group_vars/all.yml").write_text("lab: true\n")
    after = manifest((inventory,))
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert str(inventory / "group_vars/all.yml") in changed
    assert manifest((inventory / "hosts.yml",)).keys() >= {str(inventory / "group_vars/all.yml")}
    assert "provision/converge/shards.py" in after


def test_stages_of_parts_are_stages_of_the_whole():
    events = []
    merger = Merger("whole", ("reach", "host", "swap"), events.append)

    def say(part, kind, stage):
        merger.event(part, {"type": kind, "stage": stage, "run": f"part {part}"})

    merger.begin(0)
    merger.begin(1)
    for part, kind, stage in (
        (0, "stage_started", "host"),
        (1, "stage_started", "host"),
        (0, "stage_finished", "host"),
        (0, "stage_started", "swap"),
        (1, "stage_finished", "host"),
    ):
        say(part, kind, stage)
    assert [(event["type"], event["stage"]) for event in events] == [
        ("stage_started", "host"),
        ("stage_started", "swap"),
        ("stage_finished", "host"),
    ]
    merger.end(0)
    assert len(events) == 3  # the other part may still come to it
    merger.end(1)
    assert (events[-1]["type"], events[-1]["stage"], events[-1]["run"]) == ("stage_finished", "swap", "whole")


@pytest.fixture
def heeds_ctrl_c():
    """A shell has what it starts with `&` ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_a_shard_stops_as_by_ctrl_c():
    asked = iter([0, 0])
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Outbox(0, lambda _items: next(asked, 1)):
        threading.Event().wait(30)
    assert time.monotonic() - began < 10


def test_a_run_that_was_stopped_begins_no_shard(content, inventory, state, tmp_path, monkeypatch):
    content(host=[touch(tmp_path / "made")])
    monkeypatch.chdir(tmp_path)
    assert run_shard(order(load_fleet(inventory), tmp_path), lambda _items: 1) is None
    assert not list(tmp_path.glob("made-*"))
    assert "shards" not in os.listdir(state) or not list((state / "shards").iterdir())


def test_without_ray_the_next_command_is_told(content, inventory, state, monkeypatch):
    content()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"-m pip install 'ray"):
        run_shards(load_fleet(inventory), stages=STAGES)
    assert not (state / "runs").exists()
