from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from provision.errors import LabError
from provision.lab import cgroup
from provision.lab.cgroup import Hierarchy


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two hierarchies that are plain directories: the kernel's part is played by the tests."""
    found = (
        Hierarchy(tmp_path / "unified", True, frozenset()),
        Hierarchy(tmp_path / "pids", False, frozenset({"pids"})),
    )
    for each in found:
        each.mountpoint.mkdir()
        (each.mountpoint / "cgroup.controllers").write_text("cpu memory\n")
    monkeypatch.setattr(cgroup, "hierarchies", lambda: found)
    return tmp_path


def test_a_command_enters_every_hierarchy_before_it_runs(tree: Path) -> None:
    for name in ("unified", "pids"):
        (tree / name / "provision-lab/f/h").mkdir(parents=True)
    done = subprocess.run(
        cgroup.enter("f/h", ["sh", "-c", 'echo $$ "$@"', "sh", "a b", "--", "c"]),
        check=False,
        capture_output=True,
        text=True,
    )
    pid, *words = done.stdout.split()
    assert words == ["a", "b", "--", "c"]
    for name in ("unified", "pids"):
        assert (tree / name / "provision-lab/f/h/cgroup.procs").read_text().strip() == pid


def test_a_command_that_cannot_enter_does_not_run(tree: Path) -> None:
    done = subprocess.run(cgroup.enter("gone", ["echo", "ran"]), check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (70, "")


def test_processes_are_those_of_the_whole_tree(tree: Path) -> None:
    for name, pids in (("f", ""), ("f/a", "1\n2\n"), ("f/a/b", "3\n")):
        group = tree / "unified/provision-lab" / name
        group.mkdir(parents=True, exist_ok=True)
        (group / "cgroup.procs").write_text(pids)
    assert sorted(cgroup.processes("f")) == [1, 2, 3]
    assert cgroup.processes("g") == []


def test_what_does_not_die_is_named(tree: Path) -> None:
    group = tree / "unified/provision-lab/f"
    group.mkdir(parents=True)
    (group / "cgroup.procs").write_text("4711\n")
    with pytest.raises(LabError, match="4711"):
        cgroup.kill("f", timeout=0.05)
    assert (group / "cgroup.kill").read_text() == "1"


def test_removing_takes_children_first_and_the_top_when_it_is_empty(tree: Path) -> None:
    for name in ("unified", "pids"):
        (tree / name / "provision-lab/f/a/b").mkdir(parents=True)
    (tree / "pids/provision-lab/other").mkdir()
    cgroup.remove("f")
    assert not (tree / "unified/provision-lab").exists()
    assert [path.name for path in (tree / "pids/provision-lab").iterdir()] == ["other"]


def test_a_cpuset_holds_what_its_parent_holds(tmp_path: Path) -> None:
    parent, group = tmp_path, tmp_path / "group"
    group.mkdir()
    for knob, value in (("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n")):
        (parent / knob).write_text(value)
        (group / knob).write_text("\n")
    cgroup._inherit_cpuset(parent, group)
    assert (group / "cpuset.cpus").read_text() == "0-1\n"
    assert (group / "cpuset.mems").read_text() == "0\n"
