"""Whole runs of Ansible, on this machine alone and with small roles."""

from __future__ import annotations

import json
import os
import signal
import stat
import threading
from pathlib import Path

import jsonschema
import pytest

from provision import exits
from provision.converge import Result, bootstrap
from provision.errors import UsageError
from provision.inventory import load_fleet

SCHEMA = json.loads((Path(bootstrap.__code__.co_filename).parent / "events.schema.json").read_text())
FAIL_ON_N1 = {"name": "Break", "ansible.builtin.fail": {"msg": "No such card."}, "when": "inventory_hostname == 'n1'"}
SECRET = "hunter2-of-the-environment"


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
    assert (second.held_back, second.because) == (("ray", "vllm"), "n1")
    assert [path.name for path in sorted(tmp_path.glob("served*"))] == ["served-n3"]
    assert [change.differences[0].after for change in second.changes] == ["x\n"]

    for event in events:
        jsonschema.validate(event, SCHEMA)
    assert [event["type"] for event in events][:2] == ["run_started", "stage_started"]
    assert events[-1]["hosts"] == {"n1": "failed", "n2": "held_back", "n3": "changed"}
    kept = files_of(result)
    assert [json.loads(line) for line in kept["events.jsonl"].splitlines()] == events
    assert json.loads(kept["run.json"])["exit_code"] == exits.FAILED
    assert sorted(kept) == ["ansible.log", "events.jsonl", "run.json", "run.yml"]
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


def test_a_playbook_that_ansible_rejects_is_an_error_of_the_run(content, inventory, state):
    content(host=[{"name": "Nonsense", "ansible.builtin.no_such_module": {}}])
    result = bootstrap(load_fleet(inventory), limit="n3")
    assert result.exit_code == exits.FAILED
    assert "no_such_module" in (result.error or "")


def test_ctrl_c_stops_and_says_where(content, inventory, state, tmp_path):
    nap = {"name": "Nap", "ansible.builtin.command": "sleep 20"}
    content(host=[nap], swap=[touch(tmp_path / "late")])
    threading.Timer(4, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
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
