"""Runs that are stopped, killed, cut off or doubled, on the two hosts that serve: the next run goes on, and says so."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from rehearsal import Site, wait_until
from snapshot import difference, snapshot

HOSTS = ("node-1", "node-2")


class Running:
    """A bootstrap that goes on in the background."""

    def __init__(self, site: Site, *options: str) -> None:
        self.process = site.begin("bootstrap", site.directory, "--json", *options)
        self.events: list[dict[str, Any]] = []

    def read_until(self, kind: str, **wanted: str) -> dict[str, Any]:
        """The next event of that kind with those fields."""
        assert self.process.stdout
        for line in self.process.stdout:
            event = json.loads(line)
            self.events.append(event)
            if event["type"] == kind and all(event.get(name) == value for name, value in wanted.items()):
                return event
        pytest.fail(f"the run ended without {kind} {wanted}: {self.process.communicate()[1]}")

    def end(self, timeout: float = 120) -> int:
        out, error = self.process.communicate(timeout=timeout)
        self.events += [json.loads(line) for line in out.splitlines()]
        assert "Traceback" not in error, error
        return self.process.returncode


@pytest.fixture
def at_rest(served: Site) -> Iterator[Site]:
    """The hosts as a whole run leaves them, before and after the test."""
    before = {host: snapshot(served, host) for host in HOSTS}
    yield served
    for host in HOSTS:
        assert difference(before[host], snapshot(served, host)) == {}
    assert served.bootstrap().changes() == {}


def finished_tasks(events: list[dict[str, Any]]) -> set[str]:
    return {event["host"] for event in events if event["type"] == "task_finished"}


def test_what_stands_is_not_visited(at_rest: Site) -> None:
    run = at_rest.bootstrap()
    assert [event for event in run.events if event["type"] in ("task_started", "wave_started")] == []


def test_all_is_visited_if_asked(at_rest: Site) -> None:
    run = at_rest.bootstrap("--full", "--stage", "site,host,swap")
    assert run.changes() == {}
    assert finished_tasks(run.events) == set(HOSTS)


def test_a_changed_variable_visits_its_stage_on_its_host_alone(at_rest: Site) -> None:
    path = at_rest.directory / "host_vars/node-2.yml"
    before = path.read_text()
    try:
        path.write_text(before + "\nhost_extra_sysctls: {vm.dirty_ratio: 30}\n")
        run = at_rest.bootstrap()
        assert list(run.changes()) == ["node-2"]
        assert {sentence.partition(":")[0] for sentence in run.changes()["node-2"]} == {"host"}
        stages = {event["stage"] for event in run.events if event["type"] == "task_started"}
        assert stages == {"preflight", "host"}
    finally:
        path.write_text(before)
        at_rest.bootstrap()
        at_rest.sh("node-2", "sysctl -qw vm.dirty_ratio=20")


def test_the_first_ctrl_c_ends_between_two_tasks_and_resume_goes_on(at_rest: Site) -> None:
    run = Running(at_rest, "--full", "--stage", "site,host,swap")
    run.read_until("task_started", stage="host")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    assert [event["type"] for event in run.events].count("stopping") == 1
    started = [(event["host"], event["task"]) for event in run.events if event["type"] == "task_started"]
    ended = [(event["host"], event["task"]) for event in run.events if event["type"] == "task_finished"]
    assert set(started) <= set(ended)
    assert "swap" not in {event.get("stage") for event in run.events if event["type"] == "task_started"}
    resumed = at_rest.run("resume", at_rest.directory, "--json")
    assert resumed.events[-1]["exit_code"] == 0
    assert "Nothing to resume" in at_rest.run("resume", at_rest.directory).text


def test_a_killed_controller_is_told_of_and_resumed(at_rest: Site) -> None:
    run = Running(at_rest, "--full", "--stage", "site,host,swap")
    started = run.read_until("task_started", stage="host")
    run.process.send_signal(signal.SIGKILL)
    run.process.communicate()
    assert "died" in at_rest.run("history", at_rest.directory).text
    resumed = at_rest.run("resume", at_rest.directory, "--json")
    assert resumed.events[-1]["exit_code"] == 0
    assert started["run"] in {event.get("of_run") for event in resumed.events if event["type"] == "lock_taken_over"}


def test_a_second_run_is_told_who_holds_the_first(at_rest: Site) -> None:
    run = Running(at_rest, "--full", "--stage", "site,host")
    started = run.read_until("task_started")
    second = at_rest.run("bootstrap", at_rest.directory, code=75)
    assert str(run.process.pid) in second.text
    assert started["run"] in second.text
    assert run.end() == 0


def test_another_controller_is_told_who_holds_a_host(at_rest: Site) -> None:
    run = Running(at_rest, "--full", "--stage", "site,host")
    started = run.read_until("task_started")
    other = Site(at_rest.command, at_rest.directory, at_rest.state, dict(at_rest.environment))
    locks = at_rest.state / "provision/locks"
    aside = locks.rename(locks.with_name("locks-of-the-first"))  # as on a machine that does not know of the first
    try:
        second = other.run("bootstrap", other.directory, "--full", "--stage", "host", code=75)
        assert started["run"] in second.text
        assert run.end() == 0
    finally:
        for file in locks.glob("*"):
            file.unlink()
        locks.rmdir()
        aside.rename(locks)


def test_one_host_vanishes_and_is_tried_again_alone(at_rest: Site) -> None:
    at_rest.break_("node-2", "sshd-gone")
    try:
        at_rest.sh("node-1", "sysctl -qw vm.swappiness=60")
        run = at_rest.bootstrap(code=3)
        assert list(run.changes()) == ["node-1"]
    finally:
        at_rest.mend("node-2", "sshd-gone")
    again = at_rest.bootstrap("--limit", "@last-failed")
    assert next(event for event in again.events if event["type"] == "run_started")["hosts"] == ["node-2"]
    assert "No host" in at_rest.run("bootstrap", at_rest.directory, "--limit", "@last-failed").text


def test_a_host_that_reboots_in_mid_run_is_resumed(at_rest: Site) -> None:
    at_rest.break_("node-2", "hang-at-reboot")  # one that is back before its next task would fail nothing
    try:
        run = Running(at_rest, "--full", "--stage", "site,host,swap,driver,gpu")
        run.read_until("stage_started", stage="host")
        at_rest.inside("node-2", "(sleep 0.2; systemctl --force --force reboot) >/dev/null 2>&1 &")
        code = run.end(timeout=400)
    finally:
        at_rest.mend("node-2", "hang-at-reboot")
    assert code in (1, 3)
    assert {event["host"]: event["status"] for event in run.events if event["type"] == "host_finished"}["node-1"] in (
        "ok",
        "changed",
        "held_back",
    )
    wait_until("node-2 answers", lambda: at_rest.bootstrap("--check", "--stage", "host", code=None).code in (0, 2), 120)
    at_rest.run("resume", at_rest.directory)
    wait_until("the model answers again", lambda: at_rest.bootstrap(code=None).code == 0, 420)


def test_a_plan_for_what_serves_tells_its_cost_is_what_happens_and_can_be_gone_back_over(served: Site) -> None:
    path, file = served.directory / "group_vars/serving.yml", served.directory.parent / "plan.json"
    before = path.read_text()
    path.write_text(before.replace("max-num-seqs: 8", "max-num-seqs: 4"))
    try:
        plan = json.loads(served.run("plan", served.directory, "--json", "--out", file, code=2).out)
        effects = {change["resource"]: change["effect"] for change in plan["changes"]["node-1"]}
        assert effects["/etc/provision/vllm.yaml"] == "none"
        assert effects["vllm.service"] == "restart"
        assert list(plan["changes"]) == ["node-1"]
        assert plan["waves"][0]["out"] == ["tiny_a"]
        assert plan["now"]["kv_tokens"] > 0
        assert plan["waves"][0]["left"]["replicas"] == []
        screen = served.run("plan", served.directory, code=2).text
        line = before.splitlines().index("vllm_args:") + 1
        assert f"group_vars/serving.yml:{line}" in " ".join(screen.split())
        assert "out of rotation once (wave 1 of 1)" in screen
        process = served.sh("node-1", "systemctl show -P MainPID vllm.service")
        served.run("apply", file)
        assert served.sh("node-1", "systemctl show -P MainPID vllm.service") != process
        served.run("plan", served.directory)  # ends with 0: nothing is left to do
        goes_back(served, "tiny_a")
        path.write_text(before)
        assert served.bootstrap().changes() == {}
    finally:
        path.write_text(before)
        served.bootstrap()


def goes_back(site: Site, replica: str) -> None:
    """What was served before is served again; the inventory on disk still says otherwise, which is told."""
    rollback = ("serve", "rollback", site.directory, replica)
    checked = site.run(*rollback, "--check", code=2)
    assert "vllm.yaml" in checked.text
    assert f"provision serve rollback {site.directory} {replica} --to" in checked.text
    assert "max-num-seqs: 4" in site.sh("node-1", "cat /etc/provision/vllm.yaml")
    assert "still says otherwise" in site.run(*rollback).text
    assert "max-num-seqs: 8" in site.sh("node-1", "cat /etc/provision/vllm.yaml")
    site.run("plan", site.directory, code=2)


def test_drift_of_what_serves_is_named(at_rest: Site) -> None:
    assert at_rest.run("drift", at_rest.directory).code == 0
    at_rest.sh("node-1", "systemctl stop vllm.service")
    found = at_rest.run("drift", at_rest.directory, code=None)
    assert found.code in (1, 2)
    assert "vllm.service: state is inactive (dead), should be active" in found.text
    assert "systemctl stop vllm.service" in found.text  # who did it, as sudo's log has it
    at_rest.bootstrap()
    assert at_rest.run("drift", at_rest.directory).code == 0


def test_what_a_run_did_can_be_shown(at_rest: Site) -> None:
    at_rest.sh("node-1", "sysctl -qw vm.swappiness=60")
    started = time.time()
    run = at_rest.bootstrap()
    shown = at_rest.run("show", run.events[0]["run"]).text
    for word in ("node-1", "vm.swappiness", "60", "host"):
        assert word in shown
    (document,) = [json.loads(at_rest.run("show", "last", "--json").out)]
    assert document["id"] == run.events[0]["run"]
    assert time.time() - started < 300
