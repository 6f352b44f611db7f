"""The three that converge the same hosts to the same state: ours, stock Ansible, pyinfra."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peers.measure import Deadline, OverError, Took, run, say
from peers.site import Site

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Run:
    """One converging run: what it took, and how many changes it reports on each host that it changed."""

    took: Took
    changed: Mapping[str, int]


class Ours:
    """`provision bootstrap`."""

    name = "provision"

    def __init__(self, site: Site) -> None:
        self.site = site

    def converge(self, deadline: Deadline, *options: str) -> Run:
        """Converge all hosts."""
        took, events = self.site.bootstrap(*options, deadline=deadline)
        changed: dict[str, int] = {}
        for event in events:
            if event["type"] == "task_finished" and event["status"] == "changed":
                changed[event["host"]] = changed.get(event["host"], 0) + max(1, len(event["actions"]))
        return Run(took, changed)


class StockAnsible:
    """ansible-core with its own modules: as many forks as hosts, pipelining, connections kept, no facts."""

    name = "ansible"

    def __init__(self, site: Site) -> None:
        self.site = site
        self.env = site.env | {"ANSIBLE_CONFIG": str(HERE / "ansible/ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}

    def converge(self, deadline: Deadline) -> Run:
        """Converge all hosts."""
        playbook = ["ansible-playbook", "--inventory", self.site.peers, "--forks", str(len(self.site.names))]
        took = self._run([*playbook, HERE / "ansible/site.yml"], deadline)
        counts = re.findall(r"^(\S+)\s+: ok=\d+\s+changed=(\d+) ", took.out, re.MULTILINE)
        if len(counts) != len(self.site.names):
            raise OverError(f"ansible-playbook tells of {len(counts)} hosts of {len(self.site.names)}:\n{took.out}")
        return Run(took, {name: int(count) for name, count in counts if int(count)})

    def ping(self, deadline: Deadline) -> Took:
        """`ansible all -m ping`."""
        words = ["ansible", "all", "-m", "ansible.builtin.ping", "--inventory", self.site.peers]
        return self._run([*words, "--forks", str(len(self.site.names))], deadline)

    def _run(self, words: list[str | Path], deadline: Deadline) -> Took:
        program = Path(sys.executable).with_name(str(words[0]))
        return run([program, *words[1:]], self.env, deadline, self.site.group)


class Pyinfra:
    """pyinfra, in an environment of its own since it needs another paramiko."""

    name = "pyinfra"

    def __init__(self, site: Site, venv: Path) -> None:
        self.site, self.program = site, venv / "bin/pyinfra"
        self.env = site.env | {"PEERS_HOSTS": str(site.peers)}

    @classmethod
    def install(cls, venv: Path) -> None:
        """Make its environment."""
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        command = [venv / "bin/pip", "install", "--quiet", "--requirement", HERE / "pyinfra/requirements.txt"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OverError(f"pyinfra could not be installed: {done.stderr.strip()}")
        say("pyinfra installed")

    def converge(self, deadline: Deadline) -> Run:
        """Converge all hosts."""
        words = [self.program, "-y", "--parallel", str(len(self.site.names))]
        files = [HERE / "pyinfra/inventory.py", HERE / "pyinfra/deploy.py"]
        took = run([*words, *files], self.env, deadline, self.site.group)
        total = re.search(r"^\s*Grand total\s+(\d+)\s+(\S+)\s+(\S+)\s+(\S+)", took.out, re.MULTILINE)
        if not total or total[3] != "-":
            raise OverError(f"pyinfra did not end well:\n{took.out[-3000:]}")
        changed: dict[str, int] = {}
        for host in re.findall(r"^\s*\[(\S+)\] Success\s*$", took.out, re.MULTILINE):
            changed[host] = changed.get(host, 0) + 1
        if sum(changed.values()) != int(total[2].replace("-", "0")):
            raise OverError(f"pyinfra tells of {total[2]} changes, its lines of {changed}:\n{took.out[-3000:]}")
        return Run(took, changed)


def coverage(desired: Mapping[str, Mapping[str, object]]) -> dict[str, int]:
    """How many resources of each kind the peers are asked for, over all hosts."""
    counts: dict[str, int] = {}
    for host in desired.values():
        for kind, items in host.items():
            if isinstance(items, (list, dict)) and kind not in ("steps", "uncovered"):
                counts[kind] = counts.get(kind, 0) + len(items)
    return counts


def uncovered(desired: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Our modules that left receipts and that the peers do nothing about."""
    return sorted({name for host in desired.values() for name in json.loads(json.dumps(host["uncovered"]))})
