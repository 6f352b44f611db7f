from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from provision.content import content_root
from provision.converge import STAGES
from provision.converge.standing import Standing, Visit
from provision.drift import HostReceipts

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
        for part in ("library/receipt.py", "module_utils"):  # every stage's play ends with it
            source, target = content_root() / "roles/host" / part, root / "roles/host" / part
            target.parent.mkdir(exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
        (root / "roles/preflight/vars").mkdir()
        (root / "roles/preflight/vars/main.yml").write_text("preflight_profiles: {}\n")
        for module in ("content", "inventory.load", "converge.runner", "converge.handover"):
            monkeypatch.setattr(f"provision.{module}.content_root", lambda: root)
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


@dataclass
class Looks:
    """Stands for the hosts' own word: what each look finds to be visited, as stages by host, and in which waves."""

    script: list[Mapping[str, tuple[str, ...]]] = field(default_factory=list)
    waves: list[tuple[str, ...]] = field(default_factory=list)
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, fleet, hosts, stages, **how):
        self.asked.append(tuple(host.name for host in hosts))
        first = len(self.asked) == 1
        everything = {host.name: tuple(stages) for host in hosts} if first else {}
        found = self.script[len(self.asked) - 1] if len(self.asked) <= len(self.script) else everything
        visits = {
            name: tuple(Visit(stage, "asked", "the test says so") for stage in own) for name, own in found.items()
        }
        told = {host.name: HostReceipts(host.name) for host in hosts}
        inputs = {host.name: {stage: {} for stage in STAGES} for host in fleet.managed}
        waves = self.waves if first and self.waves else [tuple(visits)] * bool(visits)
        return Standing(told, inputs, visits, tuple(waves))


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Everything is to be visited at the first look and nothing at later ones, unless a test says otherwise."""
    stand = Looks()
    monkeypatch.setattr(sys.modules["provision.converge.bootstrap"], "stand", stand)
    return stand
