"""Receipts: what a run noted, sealed so that it tells nothing but what stands."""

import json
import stat

import pytest
from ansible.module_utils import provision_host, provision_receipt
from ansible.module_utils.provision_host import Change, HostError, converge, host_lock
from ansible.module_utils.provision_receipt import pending_steps, record_step, seal


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(provision_receipt, "FOLDER", str(tmp_path / "state/receipts"))
    monkeypatch.setattr(
        provision_host, "host_lock", lambda what: host_lock(what, str(tmp_path / "run/lock"), wait_s=0.1)
    )
    monkeypatch.setenv("PROVISION_STAGE", "host")
    monkeypatch.setenv("PROVISION_RUN", "r1")
    return tmp_path / "state/receipts"


def lines(folder):
    return [json.loads(line) for line in (folder / "host.pending").read_text().splitlines()]


def test_a_step_is_noted_when_its_work_is_done(folder, fake_module, module_end):
    with pytest.raises(module_end):
        converge(fake_module(size=1, token="s3cr3t"), lambda: [Change("Did it.", list)], lambda: {"a": 1}, ["token"])
    assert lines(folder) == [{"run": "r1", "module": "fake", "params": {"size": 1}, "facts": {"a": 1}}]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "host.pending").stat().st_mode) == 0o600


def fails():
    raise HostError("No.")
    yield


@pytest.mark.parametrize(
    ("check_mode", "plan", "unset"),
    [(True, list, ""), (False, fails, ""), (False, list, "PROVISION_RUN"), (False, list, "PROVISION_STAGE")],
)
def test_nothing_is_noted_of_what_was_not_brought_about(
    folder, fake_module, module_end, monkeypatch, check_mode, plan, unset
):
    if unset:
        monkeypatch.setenv(unset, "")
    with pytest.raises(module_end):
        converge(fake_module(check_mode), plan)
    assert not folder.exists()


def test_steps_keep_their_order_and_one_taken_again_counts_once(fake_module):
    for size, fact in ((1, "old"), (2, "x"), (1, "new"), (3, "x")):
        record_step(fake_module(size=size), {"fact": fact})
    found = [(step["params"]["size"], step["facts"]["fact"]) for step in pending_steps("host", "r1")]
    assert found == [(2, "x"), (1, "new"), (3, "x")]


def test_torn_lines_and_those_of_other_runs_are_left_out(folder, fake_module, monkeypatch):
    monkeypatch.setenv("PROVISION_RUN", "r0")
    record_step(fake_module(size=1), {})
    with (folder / "host.pending").open("a") as pending:
        pending.write('{"run": "r1", "module": "fa')
    monkeypatch.setenv("PROVISION_RUN", "r1")
    record_step(fake_module(size=2), {})
    assert [step["params"] for step in pending_steps("host", "r1")] == [{"size": 2}]


def test_equal_runs_seal_equal_receipts(folder, fake_module, monkeypatch):
    sealed = []
    for run in ("r1", "r2"):
        monkeypatch.setenv("PROVISION_RUN", run)
        record_step(fake_module(b=1, a=2), {"fact": "x"})
        seal("host", {"v": "0123456789abcdef"}, run)
        sealed.append((folder / "host.json").read_text())
        folder.chmod(0o755)
    seal("other", {}, "r2")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "other.json").unlink()
    assert sealed[0] == sealed[1]
    steps = [{"module": "fake", "params": {"a": 2, "b": 1}, "facts": {"fact": "x"}}]
    assert json.loads(sealed[0]) == {"format": 1, "stage": "host", "inputs": {"v": "0123456789abcdef"}, "steps": steps}
    assert stat.S_IMODE((folder / "host.json").stat().st_mode) == 0o600
    assert [path.name for path in folder.iterdir()] == ["host.json"]


@pytest.mark.parametrize(
    ("check_mode", "inputs", "run"),
    [(False, {"v": "1"}, "r1"), (True, {"v": "1"}, "r1"), (False, {}, "r1"), (False, {"v": "1"}, "")],
)
def test_the_module_seals_what_is_asked_for(
    folder, fake_module, role_module, request, monkeypatch, check_mode, inputs, run
):
    module = role_module("host", "receipt")
    monkeypatch.setattr(module, "host_lock", provision_host.host_lock)
    monkeypatch.setattr(module, "AnsibleModule", lambda **_: fake_module(check_mode, stage="swap", inputs=inputs))
    monkeypatch.setenv("PROVISION_RUN", run)
    sealed = not check_mode and bool(inputs) and bool(run)
    with pytest.raises(request.getfixturevalue("module_end")) as end:
        module.main()
    assert end.value.result == {"failed": False, "changed": False, "sealed": sealed}
    assert (folder / "swap.json").exists() is sealed


def test_the_folder_is_made_closed_and_closed_again(folder, fake_module):
    record_step(fake_module(size=1), {})
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder)] == [0o755, 0o700]
    folder.parent.chmod(0o777)
    folder.chmod(0o755)
    seal("host", {}, "r1")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder)] == [0o755, 0o700]
