"""What every module does with what differs, and how files are put in place."""

import os
import stat
import subprocess
import sys

import pytest
from ansible.module_utils import provision_host
from ansible.module_utils.provision_files import work_folder
from ansible.module_utils.provision_host import (
    Change,
    HostError,
    converge,
    file_change,
    host_lock,
    lock_holder,
    write_file,
)


@pytest.fixture(autouse=True)
def lock_here(tmp_path, monkeypatch):
    path = str(tmp_path / "run/lock")
    monkeypatch.setattr(provision_host, "host_lock", lambda what: host_lock(what, path, wait_s=0.3))
    return path


def end_of(module, plan, module_end):
    with pytest.raises(module_end) as end:
        converge(module, plan)
    return end.value.result


def test_check_mode_tells_and_does_nothing(fake_module, module_end):
    done = []
    changes = [Change("Did it.", lambda: done.append(1), "thing", "a\n", "b\n")]
    result = end_of(fake_module(check_mode=True), lambda: changes, module_end)
    assert done == []
    assert result["actions"] == ["Did it."]
    assert result["changed"]
    assert result["diff"] == [{"before_header": "thing", "after_header": "thing", "before": "a\n", "after": "b\n"}]


def test_each_next_reading_sees_the_last_change(fake_module, module_end):
    state = []

    def plan():
        yield Change("First.", lambda: state.append(1))
        if state:
            yield Change("Second.", lambda: state.append(2))

    assert end_of(fake_module(), plan, module_end)["actions"] == ["First.", "Second."]
    assert end_of(fake_module(check_mode=True), lambda: iter(()), module_end)["changed"] is False


def test_a_failure_tells_what_was_done_before_it(fake_module, module_end):
    def plan():
        yield Change("First.", list)
        raise HostError("It is so. Do that.")

    result = end_of(fake_module(), plan, module_end)
    assert result["failed"]
    assert result["msg"] == "It is so. Do that."
    assert result["actions"] == ["First."]


def test_effects_stand_beside_the_actions(fake_module, module_end):
    changes = [Change("First.", list), Change("Second.", list, effect="restart")]
    for check_mode in (False, True):
        result = end_of(fake_module(check_mode), lambda: changes, module_end)
        assert result["effects"] == ["none", "restart"]


def test_a_host_is_changed_by_one_run_at_a_time(fake_module, module_end, lock_here, monkeypatch):
    monkeypatch.setenv("PROVISION_RUN", "r1")
    with host_lock("module other", lock_here, wait_s=0):
        result = end_of(fake_module(), lambda: iter(()), module_end)
    assert result["failed"]
    assert f"Process {os.getpid()} (" in result["msg"]
    assert "python" in result["msg"]
    assert "module other, run r1) has been changing this host since 20" in result["msg"]


def test_who_holds_the_host_is_told_as_long_as_it_does(lock_here):
    assert lock_holder(lock_here) is None
    with host_lock("module x", lock_here):
        assert lock_holder(lock_here)["pid"] == os.getpid()
    assert lock_holder(lock_here) is None


def test_long_work_of_an_earlier_run_is_waited_for(lock_here, tmp_path, monkeypatch):
    monkeypatch.setattr(provision_host, "TRANSIENT", str(tmp_path))
    (tmp_path / "provision-driver.service").touch()
    monkeypatch.setattr(provision_host.time, "sleep", lambda _: (tmp_path / "provision-driver.service").unlink())
    with (
        host_lock("module x", lock_here),
        pytest.raises(HostError, match="module x"),
        host_lock("module y", lock_here, wait_s=-1),
    ):
        pass
    assert provision_host.at_work() == []


def test_a_file_is_whole_and_has_its_mode(tmp_path):
    path = tmp_path / "deep/secret"
    write_file(str(path), "x\n", 0o600)
    assert path.read_text() == "x\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]


def test_only_what_differs_is_a_change(tmp_path):
    path = tmp_path / "file"
    assert [change.action for change in file_change(str(path), "x")] == [f"Wrote {path}."]
    write_file(str(path), "x")
    assert list(file_change(str(path), "x")) == []
    path.chmod(0o600)
    assert [change.action for change in file_change(str(path), "x")] == [f"Set the mode of {path} to 0644."]
    assert [change.action for change in file_change(str(path), "y")] == [f"Rewrote {path}."]


def told(path, text="x", mode=0o644):
    return [change.action for change in file_change(str(path), text, mode=mode)]


def test_a_link_in_the_place_of_a_file_is_replaced(tmp_path):
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_text("x")
    path.symlink_to(other)
    (change,) = file_change(str(path), "x")
    assert (change.action, change.before) == (f"Put a file in the place of the link {path}.", f"a link to {other}\n")
    change.act()
    assert (path.is_symlink(), path.read_text(), told(path)) == (False, "x", [])


def test_another_owner_and_mode_are_two_changes(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_file(str(path), "x", 0o600)
    monkeypatch.setattr(provision_host.os, "geteuid", lambda: 4242)
    assert told(path) == [f"Gave {path} back to root.", f"Set the mode of {path} to 0644."]


def test_a_directory_in_the_place_of_a_file_is_told(tmp_path):
    (tmp_path / "file").mkdir()
    for look in (file_change(str(tmp_path / "file"), "x"), provision_host.absent_change(str(tmp_path / "file"))):
        with pytest.raises(HostError, match="should be a file, and is something else"):
            next(look)


def test_what_should_be_absent_is_removed_even_when_it_leads_nowhere(tmp_path):
    (tmp_path / "link").symlink_to("/nowhere")
    (change,) = provision_host.absent_change(str(tmp_path / "link"))
    change.act()
    assert not (tmp_path / "link").is_symlink()
    assert list(provision_host.absent_change(str(tmp_path / "link"))) == []


def test_a_program_that_outlives_its_module_keeps_the_lock(lock_here):
    module = f"""
import ansible.module_utils
ansible.module_utils.__path__.append({os.path.dirname(provision_host.__file__)!r})
from ansible.module_utils import provision_host as host
with host.host_lock("module x", {lock_here!r}):
    host.run(["sh", "-c", "sleep 1 & kill -KILL $PPID"], check=False)
"""
    killed = subprocess.run([sys.executable, "-c", module], check=False)
    assert killed.returncode == -9
    assert lock_holder(lock_here) is not None
    with host_lock("module y", lock_here, wait_s=10):
        assert lock_holder(lock_here)["pid"] == os.getpid()


def test_work_folders_of_the_dead_go_with_the_next_lock(lock_here, tmp_path):
    with work_folder(str(tmp_path / "run"), "verify") as mine:
        dead = mine.with_name("verify.99999999")
        dead.mkdir()
        with host_lock("module x", lock_here):
            assert mine.is_dir()
            assert not dead.exists()
    assert not mine.exists()
