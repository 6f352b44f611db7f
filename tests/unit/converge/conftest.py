from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from provision.content import content_root
from provision.converge import STAGES

PLAYBOOKS = content_root() / "playbooks"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/provision"


@pytest.fixture
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The tree's own playbooks over roles that a test writes: `tasks` by role; the others do nothing."""

    def make(**tasks: list[dict[str, object]]) -> Path:
        root = tmp_path / "content"
        shutil.copytree(PLAYBOOKS, root / "playbooks", dirs_exist_ok=True)
        for stage in STAGES:
            (root / f"roles/{stage}/tasks").mkdir(parents=True, exist_ok=True)
            (root / f"roles/{stage}/tasks/main.yml").write_text(yaml.safe_dump(tasks.get(stage, [])))
        (root / "roles/preflight/vars").mkdir()
        (root / "roles/preflight/vars/main.yml").write_text("preflight_profiles: {}\n")
        for module in ("provision.content", "provision.inventory.load", "provision.converge.runner"):
            monkeypatch.setattr(f"{module}.content_root", lambda: root)
        return root

    return make


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    """Two replicas on this very machine, without SSH and without root."""
    hosts = {f"n{number}": {"ansible_host": f"127.0.0.{number}"} for number in (1, 2, 3)}
    tree = {
        "all": {"vars": {"ansible_connection": "local", "ansible_become": False}},
        "serving": {
            "children": {"a": {"hosts": {n: hosts[n] for n in ("n1", "n2")}}, "b": {"hosts": {"n3": hosts["n3"]}}}
        },
    }
    tree["all"]["vars"]["ansible_python_interpreter"] = shutil.which("python3")
    (tmp_path / "inventory").mkdir()
    (tmp_path / "inventory/hosts.yml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return tmp_path / "inventory"
