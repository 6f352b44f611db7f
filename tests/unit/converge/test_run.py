"""Whole runs of Ansible, on this machine alone and with small roles."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import jsonschema
import pytest
import yaml

from provision import exits
from provision.cli.summary import summary
from provision.content import content_root
from provision.converge import STAGES, HostResult, Result, bootstrap
from provision.converge.bootstrap import _Run
from provision.converge.recorder import Recorder
from provision.converge.result import CANARY, Failure
from provision.converge.standing import Standing, decide
from provision.drift import Finding, HostReceipts, Mended, StageReceipt
from provision.errors import UsageError
from provision.inventory import load_fleet
from provision.serving import gateway

SCHEMA = json.loads((Path(bootstrap.__code__.co_filename).parent / "events.schema.json").read_text())
FAIL_ON_N1 = {"name": "Break", "ansible.builtin.fail": {"msg": "No such card."}, "when": "inventory_hostname == 'n1'"}
SECRET = "hunter2-of-the-environment"
ROLES = content_root() / "roles"  # before a test puts others in their place


def touch(path: Path) -> dict[str, object]:
    return {
        "name": "Write the file",
        "ansible.builtin.copy": {"dest": f"{path}-{{{{ inventory_hostname }}}}", "content": "x\n", "mode": "0644"},
    }


def files_of(result: Result) -> dict[str, str]:
    return {path.name: path.read_text() for path in result.directory.rglob("*") if path.is_file()}


def test_a_run_that_fails_on_one_host(content, inventory, state, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    show = {"name": "Show", "ansible.builtin.debug": {"msg": "{{ lookup('env', 'ANSIBLE_HOST_KEY_CHECKING') }}"}}
    content(preflight=[show], host=[touch(tmp_path / "made")], swap=[FAIL_ON_N1], vllm=[touch(tmp_path / "served")])
    events, leaked = [], []

    def on_event(event):
        events.append(event)
        leaked.extend(path for path in state.rglob("*") if path.is_file() and SECRET in path.read_text())

    result = bootstrap(load_fleet(inventory), on_event=on_event)

    assert result.exit_code == exits.FAILED
    assert {name: host.status for name, host in result.hosts.items()} == {
        "n1": "failed",
        "n2": "held_back",
        "n3": "changed",
    }
    failure = result.hosts["n1"].failure
    assert (failure.stage, failure.task, failure.message) == ("swap", "Break", "No such card.")
    second = result.hosts["n2"]
    assert (second.held_back, second.because) == (("fabric", "ray", "vllm"), "n1")
    assert [path.name for path in sorted(tmp_path.glob("served*"))] == ["served-n3"]
    assert [change.differences[0].after for change in second.changes] == ["x\n"]

    for event in events:
        jsonschema.validate(event, SCHEMA)
    assert [event["type"] for event in events][:2] == ["run_started", "stage_started"]
    assert events[-1]["hosts"] == {"n1": "failed", "n2": "held_back", "n3": "changed"}
    kept = files_of(result)
    assert [json.loads(line) for line in kept["events.jsonl"].splitlines()] == events
    assert json.loads(kept["run.json"])["exit_code"] == exits.FAILED
    assert sorted(kept) == [
        "ansible.log",
        "events.jsonl",
        "hosts.yml",
        "play.yml",
        "provision-verify",
        "run.json",
        "run.yml",
        "variables.json",
    ]
    assert SECRET not in "".join(kept.values())
    assert not leaked
    assert "True" in kept["ansible.log"]
    assert stat.S_IMODE(result.directory.stat().st_mode) == 0o700


def test_check_mode_changes_nothing_and_says_what_it_would(content, inventory, state, tmp_path):
    content(host=[touch(tmp_path / "made")])
    result = bootstrap(load_fleet(inventory), stages=["host"], limit="b", check=True)
    assert result.exit_code == exits.PENDING
    assert list(result.hosts) == ["n3"]
    assert not list(tmp_path.glob("made*"))


def test_nothing_to_do(content, inventory, state):
    content()
    result = bootstrap(load_fleet(inventory), stages=["host,swap"], limit="n3")
    assert result.exit_code == exits.OK
    assert result.hosts["n3"].status == "ok"


def test_what_stands_is_not_visited(content, inventory, state, tmp_path, looks):
    content(host=[touch(tmp_path / "made")])
    looks.script = [{}]
    result = bootstrap(load_fleet(inventory))
    assert result.exit_code == exits.OK
    assert not list(tmp_path.glob("made*"))
    assert looks.asked == [("n1", "n2", "n3")]
    assert not result.log.read_text()  # Ansible did not run


def test_only_what_does_not_stand_is_visited(content, inventory, state, tmp_path, looks):
    content(host=[touch(tmp_path / "host")], swap=[touch(tmp_path / "swap")])
    looks.script = [{"n1": ("host",), "n3": ("host", "swap")}]
    result = bootstrap(load_fleet(inventory))
    assert result.exit_code == exits.OK
    assert sorted(path.name for path in tmp_path.glob("*-n?")) == ["host-n1", "host-n3", "swap-n3"]
    assert looks.asked[1] == ("n1", "n3")


def test_what_fell_is_visited_in_the_next_round(content, inventory, state, tmp_path, looks):
    content(host=[touch(tmp_path / "host")], swap=[touch(tmp_path / "swap")])
    looks.script = [{"n3": ("host",)}, {"n3": ("swap",)}]
    assert bootstrap(load_fleet(inventory)).exit_code == exits.OK
    assert sorted(path.name for path in tmp_path.glob("*-n?")) == ["host-n3", "swap-n3"]
    assert len(looks.asked) == 3


def test_what_never_comes_to_rest_has_failed(content, inventory, state, looks):
    content()
    looks.script = [{"n3": ("host",)}] * 4
    result = bootstrap(load_fleet(inventory))
    assert result.exit_code == exits.FAILED
    assert "host does not hold" in result.hosts["n3"].failure.message


def test_hosts_mend_themselves_before_ansible_runs(content, inventory, state, tmp_path, looks, monkeypatch):
    content(host=[touch(tmp_path / "host")], swap=[touch(tmp_path / "swap")])
    looks.script = [{"n1": ("host",), "n3": ("host", "swap")}]
    change = Finding("host", "kernel_tunables", "Set a.b to 1.", "a.b", "2\n", "1\n", "none")
    done = Mended("host", "kernel_tunables", (change,), 0.1)
    asked, events = [], []

    def mend(hosts, fleet, stages):
        asked.append(dict(hosts))
        return [HostReceipts("n1", mended=(done,)), HostReceipts("n3", mended=(done, replace(done, changes=())))]

    def after(_fleet, standing, _told, _stages):
        visits = {"n3": tuple(visit for visit in standing.visits["n3"] if visit.stage == "swap")}
        return replace(standing, visits=visits, waves=(("n3",),))

    room = sys.modules["provision.converge.bootstrap"]
    monkeypatch.setattr(Standing, "mendable", lambda self: {"n1": ("host",), "n3": ("host",)})
    monkeypatch.setattr(room, "mend", mend)
    monkeypatch.setattr(room, "mended", after)
    result = bootstrap(load_fleet(inventory), on_event=events.append)
    assert result.exit_code == exits.OK
    assert asked == [{"n1": ("host",), "n3": ("host",)}]
    assert [path.name for path in tmp_path.glob("*-n?")] == ["swap-n3"]
    assert [change.actions for change in result.hosts["n1"].changes] == [("Set a.b to 1.",)]
    assert [change.stage for change in result.hosts["n3"].changes] == ["host", "swap"]
    assert result.hosts["n1"].counts["changed"] == 1
    for event in events:
        jsonschema.validate(event, SCHEMA)


def test_a_check_mends_nothing(content, inventory, state, tmp_path, looks, monkeypatch):
    content(host=[touch(tmp_path / "host")])
    monkeypatch.setattr(sys.modules["provision.converge.bootstrap"], "mend", None)
    monkeypatch.setattr(Standing, "mendable", lambda self: {"n1": ("host",)})
    assert bootstrap(load_fleet(inventory), check=True).exit_code == exits.PENDING


@pytest.fixture
def waiting(looks, monkeypatch):
    """On n3 a reboot begins to wait while the run is at work there."""
    reboot = Finding("driver", "host_reboot", "Rebooted: libc6 asked.", "boot", "libc6 asked\n", "none\n", "reboot")
    room, first = sys.modules["provision.converge.bootstrap"], looks

    def stand(fleet, hosts, stages, **how):
        standing = first(fleet, hosts, stages, **how)
        receipts = {
            host.name: {stage: StageReceipt(stage, {}, "", (reboot,) if stage == "driver" else ()) for stage in STAGES}
            for host in hosts
            if len(first.asked) > 1 and host.name == "n3"
        }
        told = {name: replace(one, stages=receipts.get(name, {})) for name, one in standing.receipts.items()}
        return decide(fleet, told, standing.inputs, stages) if receipts else replace(standing, receipts=told)

    monkeypatch.setattr(room, "stand", stand)


def planned_by_role(role, module):
    """What a role's task gives its module as to whether the applied plan names a reboot."""
    tasks = yaml.safe_load((ROLES / f"{role}/tasks/main.yml").read_text())
    (arguments,) = [task[module] for task in tasks if module in task]
    return arguments["planned" if module == "host_reboot" else "reboot_planned"]


@pytest.mark.parametrize("named", [None, (), ("n3",)])
def test_only_hosts_of_which_the_plan_names_a_reboot_may_be_rebooted(content, inventory, state, tmp_path, looks, named):
    asked = [planned_by_role("reboot", "host_reboot"), planned_by_role("driver", "nvidia_driver")]
    write = {"dest": f"{tmp_path}/{{{{ inventory_hostname }}}}", "content": " ".join(asked), "mode": "0644"}
    content(host=[{"name": "Write", "ansible.builtin.copy": write}])
    result = bootstrap(load_fleet(inventory), stages=["host"], reboots=named)
    assert result.exit_code == exits.OK
    allowed = {f"n{number}" for number in (1, 2, 3)} if named is None else set(named)
    found = {name: (tmp_path / name).read_text() for name in ("n1", "n2", "n3")}
    assert found == {name: "True True" if name in allowed else "False False" for name in found}
    assert json.loads((result.directory / "run.json").read_text())["reboots"] == (
        None if named is None else list(named)
    )


def test_a_reboot_that_the_plan_does_not_name_waits_and_is_told(content, inventory, state, tmp_path, looks, waiting):
    content(host=[touch(tmp_path / "host")], driver=[touch(tmp_path / "driver")])
    looks.script = [{"n3": ("host",)}]
    events = []
    result = bootstrap(load_fleet(inventory), reboots=("n1",), on_event=events.append)
    assert result.exit_code == exits.PENDING
    assert (result.hosts["n3"].status, result.hosts["n3"].waits) == ("changed", ("libc6 asked",))
    assert sorted(path.name for path in tmp_path.glob("*-n?")) == ["host-n3"]
    assert [event.get("waits") for event in events if event["type"] == "host_finished"] == [None, None, ["libc6 asked"]]
    for event in events:
        jsonschema.validate(event, SCHEMA)


def test_one_that_it_names_is_gone_about(content, inventory, state, tmp_path, looks, waiting):
    content(host=[touch(tmp_path / "host")], driver=[touch(tmp_path / "driver")])
    looks.script = [{"n3": ("host",)}]
    result = bootstrap(load_fleet(inventory), stages=["host,driver"], reboots=("n3",))
    assert sorted(path.name for path in tmp_path.glob("*-n?")) == ["driver-n3", "host-n3"]
    assert result.hosts["n3"].waits == ()


def test_why_a_host_waits_is_forgotten_only_where_it_was_asked_again():
    """What mending comes to tells of the hosts that mended themselves, and the others are as they were stripped."""
    host = HostResult("n3", waits=("libc6 asked",))
    run = SimpleNamespace(how=SimpleNamespace(reboots=()), recorder=SimpleNamespace(hosts={"n3": host}))
    standing = Standing({"n3": HostReceipts("n3")}, {}, {}, ())
    assert _Run._as_planned(run, standing, ["n1"]) is standing
    assert host.waits == ("libc6 asked",)
    _Run._as_planned(run, standing, ["n3"])
    assert host.waits == ()


def test_what_is_not_approved_is_not_done(content, inventory, state, tmp_path, looks):
    content(host=[touch(tmp_path / "host")])

    def refuse():
        raise UsageError("It moved.")

    with pytest.raises(UsageError, match="It moved"):
        bootstrap(load_fleet(inventory), approve=refuse)
    assert not list(tmp_path.glob("host-*"))


def test_a_failed_wave_spares_the_next(content, inventory, state, tmp_path, looks):
    content(host=[FAIL_ON_N1, touch(tmp_path / "made")])
    looks.waves = [("n1", "n2"), ("n3",)]
    events = []
    result = bootstrap(load_fleet(inventory), on_event=events.append)
    assert result.exit_code == exits.FAILED
    assert [event["hosts"] for event in events if event["type"] == "wave_started"] == [["n1", "n2"]]
    assert result.hosts["n3"].spared == "n1"
    assert result.hosts["n3"].status == "held_back"
    assert not list(tmp_path.glob("made-n3"))
    for event in events:
        jsonschema.validate(event, SCHEMA)


def test_a_lost_lease_ends_the_run_between_two_tasks(content, inventory, state, tmp_path, monkeypatch):
    content(host=[nap(tmp_path / "nap", 3), touch(tmp_path / "late")])

    class Lease:
        took_over: ClassVar[dict[str, object]] = {}

        def __init__(self, hosts, run):
            self.lost = {}

        def __enter__(self):
            threading.Timer(0, self.lose).start()
            return self

        def __exit__(self, *error):
            pass

        def lose(self):
            while not (tmp_path / "nap").exists():
                time.sleep(0.05)
            self.lost["n3"] = "n3 is being changed by another run."

    monkeypatch.setattr(sys.modules["provision.converge.bootstrap"], "Lease", Lease)
    result = bootstrap(load_fleet(inventory), limit="n3", stages=["host"])
    assert result.exit_code == exits.FAILED
    assert result.hosts["n3"].failure.message == "n3 is being changed by another run."
    assert (tmp_path / "nap.done").exists()
    assert not list(tmp_path.glob("late*"))


def test_secrets_reach_neither_screen_nor_journal(content, inventory, state, tmp_path):
    (inventory / "host_vars").mkdir()
    (inventory / "host_vars/n3.yml").write_text("vault_password: hunter2-in-the-vault\n")
    content(host=[touch(tmp_path / "hunter2-in-the-vault")])
    events, lines = [], []
    result = bootstrap(load_fleet(inventory), limit="n3", stages=["host"], on_event=events.append, on_text=lines.append)
    assert result.hosts["n3"].changes
    assert "hunter2" not in f"{events} {lines} {result.hosts['n3']} {files_of(result)}"


def test_waves_go_one_after_another(content, inventory, state, looks):
    content(host=[{"name": "Nothing", "ansible.builtin.debug": {"msg": "here"}}])
    looks.waves = [("n3",), ("n1", "n2")]
    events = []
    result = bootstrap(load_fleet(inventory), stages=["host"], on_event=events.append)
    assert result.exit_code == exits.OK
    order = [event["host"] for event in events if event["type"] == "task_finished" and event["task"] == "Nothing"]
    assert order[0] == "n3"
    assert set(order[1:]) == {"n1", "n2"}


def test_checking_is_one_pass_whatever_the_waves(content, inventory, state, looks):
    content()
    looks.waves = [("n3",), ("n1", "n2")]
    events = []
    bootstrap(load_fleet(inventory), check=True, on_event=events.append)
    assert [event["hosts"] for event in events if event["type"] == "wave_started"] == [["n1", "n2", "n3"]]
    assert len(looks.asked) == 1


def test_a_playbook_that_ansible_rejects_is_an_error_of_the_run(content, inventory, state):
    content(host=[{"name": "Nonsense", "ansible.builtin.no_such_module": {}}])
    result = bootstrap(load_fleet(inventory), limit="n3")
    assert result.exit_code == exits.FAILED
    assert "no_such_module" in (result.error or "")


def test_a_playbook_that_breaks_off_is_an_error_of_the_run_whoever_failed_before(tmp_path):
    recorder = Recorder(["n1", "n2"], ("reach", "host"), "7", lambda _event: None)
    recorder.refuse("n2", Failure("reach", "ssh", "no route to host", unreachable=True))
    recorder.runner_event({"event": "playbook_on_stats", "event_data": {}})
    recorder.end(2)  # the one that could not be reached accounts for it
    assert recorder.error is None
    recorder.runner_event({"event": "error", "stdout": "[ERROR]: Unexpected Exception, this was the cause"})
    recorder.end(250)
    assert recorder.error == "Unexpected Exception, this was the cause"


def interrupt(path: Path, times: int) -> None:
    """Send Ctrl-C to this process once the file is there, and again a second later."""

    def wait() -> None:
        while not path.exists():
            time.sleep(0.05)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    threading.Thread(target=wait, daemon=True).start()


def nap(path: Path, seconds: int) -> dict[str, object]:
    return {"name": "Nap", "ansible.builtin.shell": f"touch {path}; sleep {seconds}; touch {path}.done"}


def test_ctrl_c_finishes_the_task_and_stops(content, inventory, state, tmp_path):
    content(host=[nap(tmp_path / "nap", 4), touch(tmp_path / "late")], swap=[touch(tmp_path / "later")])
    interrupt(tmp_path / "nap", 1)
    events = []
    result = bootstrap(load_fleet(inventory), limit="n3", on_event=events.append)
    assert result.exit_code == exits.INTERRUPTED
    assert (tmp_path / "nap.done").exists()
    assert result.running == {}
    assert not list(tmp_path.glob("late*"))
    (stopping,) = [event for event in events if event["type"] == "stopping"]
    assert stopping["running"] == {"n3": {"stage": "host", "task": "Nap"}}
    for event in events:
        jsonschema.validate(event, SCHEMA)


def test_a_second_ctrl_c_stops_at_once_and_says_where(content, inventory, state, tmp_path):
    content(host=[nap(tmp_path / "nap", 20)], swap=[touch(tmp_path / "late")])
    interrupt(tmp_path / "nap", 2)
    result = bootstrap(load_fleet(inventory), limit="n3")
    assert result.exit_code == exits.INTERRUPTED
    assert result.seconds < 15
    assert result.running == {"n3": ("host", "Nap")}
    assert not list(tmp_path.glob("late*"))


@pytest.mark.parametrize(
    ("asked", "said"), [({"stages": ["vlm"]}, "Did you mean vllm"), ({"limit": "n9"}, "no host or group n9")]
)
def test_names_that_do_not_exist(content, inventory, state, asked, said):
    content()
    with pytest.raises(UsageError, match=said):
        bootstrap(load_fleet(inventory), **asked)
    assert not (state / "runs").exists()


@pytest.fixture
def guarded(inventory, monkeypatch):
    """The inventory with a gateway, of which it is noted what it is told; replica a is one that a wave disturbs."""
    tree = yaml.safe_load((inventory / "hosts.yml").read_text())
    tree["gateway"] = {"hosts": {"n3": None}}
    (inventory / "hosts.yml").write_text(yaml.safe_dump(tree, sort_keys=False))
    told, state = [], {name: gateway.Rotation("in", 1, "L7OK") for name in "ab"}

    def drain(fleet, replica, deadline_s, *, by):
        told.append(("drain", replica.name))
        state[replica.name] = gateway.Rotation("draining", 0, "L7OK", by)
        return gateway.Drained(0, 0.5)

    def admit(fleet, replica, wait_s):
        told.append(("admit", replica.name))
        state[replica.name] = gateway.Rotation("in", 0, "L7OK")

    monkeypatch.setattr(gateway, "look", lambda fleet: [gateway.Gateway(fleet.gateways[0], state)])
    monkeypatch.setattr(gateway, "drain", drain)
    monkeypatch.setattr(gateway, "admit", admit)
    monkeypatch.setattr(gateway, "deadline_of", lambda fleet: 600)
    part = sys.modules["provision.converge.bootstrap"]
    monkeypatch.setattr(part, "touched", lambda fleet, *_: [r for r in fleet.replicas if r.name == "a"])
    monkeypatch.setattr(part, "serves", lambda *_: True)
    return told


def test_a_replica_is_drained_for_its_wave_and_admitted_after_it(content, inventory, state, looks, guarded):
    content()
    looks.waves = [("n3",), ("n1", "n2")]
    events = []
    result = bootstrap(load_fleet(inventory), stages=["host"], on_event=events.append)
    assert result.exit_code == exits.OK
    assert guarded == [("drain", "a"), ("admit", "a")]
    told = [e["type"] for e in events if e["type"].startswith(("replica_", "wave_"))]
    assert told == ["wave_started", "wave_started", "replica_drained", "replica_admitted"]
    for event in events:
        jsonschema.validate(event, SCHEMA)


def test_one_that_fails_stays_out_until_a_run_mends_it(content, inventory, state, looks, guarded):
    content(host=[FAIL_ON_N1])
    looks.waves = [("n1", "n2"), ("n3",)]
    result = bootstrap(load_fleet(inventory), stages=["host"])
    assert (result.exit_code, result.error) == (exits.FAILED, None)
    assert guarded == [("drain", "a")]
    looks.asked.clear()
    looks.script = [{}]
    assert bootstrap(load_fleet(inventory), stages=["host"]).exit_code == exits.OK
    assert guarded == [("drain", "a"), ("admit", "a")]


def test_a_canary_is_changed_alone_and_the_others_wait(content, inventory, state, tmp_path, looks, guarded):
    content(host=[touch(tmp_path / "made")])
    looks.waves = [("n1", "n2"), ("n3",)]
    events = []
    result = bootstrap(load_fleet(inventory), stages=["host"], canary=True, on_event=events.append)
    assert result.exit_code == exits.PENDING
    assert result.canary == "a"
    assert (result.hosts["n3"].status, result.hosts["n3"].spared) == ("held_back", CANARY)
    assert sorted(path.name for path in tmp_path.glob("made-*")) == ["made-n1", "made-n2"]
    assert guarded == [("drain", "a"), ("admit", "a")]
    assert "the others" in "\n".join(summary(result, load_fleet(inventory), inventory))
    for event in events:
        jsonschema.validate(event, SCHEMA)
