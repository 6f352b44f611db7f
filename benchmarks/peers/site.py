"""A simulated site for the benchmark: an inventory that it generates, a fleet of its own, a shell on every host."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from peers.measure import Deadline, OverError, Took, come_first, fleet_group, run, say

CHECKOUT = Path(__file__).resolve().parents[2]
PROVISION = Path(sys.executable).parent / "provision"
COLLECT = Path(__file__).with_name("collect.py")

# Each host serves a tiny model by itself; one has a GPU that runs slower, so that not all hosts are alike.
SERVING = {
    "hardware_profile": "8xh20-96",
    "weights_repo": "provision-lab/tiny-deepseek-v3",
    "serving_env_build": "cpu",
    "vllm_served_model_name": "tiny",
    "vllm_tensor_parallel_size": 1,
    "vllm_args": {"max-model-len": 512, "max-num-seqs": 8, "num-gpu-blocks-override": 64},  # 1 GiB less a host
    "swap_size": "64M",
    "swap_path": "/data/swapfile",  # where the simulated disk is
}
SMALL = {"host_packages": ["ca-certificates", "numactl", "pciutils"]}  # where nothing is compiled: minutes less a fleet


class Site:
    """`names` are its hosts, `gateways` what stands before them. Without `serving` they get no compiler."""

    def __init__(self, work: Path, hosts: int, stages: str, serving: bool = True, gateways: int = 0) -> None:
        self.names = [f"host-{number:02}" for number in range(1, hosts + 1)]
        self.gateways = [f"gate-{number:02}" for number in range(1, gateways + 1)]
        self.inventory, self.stages = work / "inventory", stages
        self.peers = work / "hosts.json"
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")},
            "XDG_STATE_HOME": str(work / "state"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(work / "cp"),
            "NO_COLOR": "1",
        }
        self.group: Path | None = None
        self._write(SERVING if serving else {**SERVING, **SMALL})

    def _write(self, variables: dict[str, Any]) -> None:
        replicas = {f"r{name[5:]}": {"hosts": {name: None}} for name in self.names}
        gateways = {"gateway": {"hosts": dict.fromkeys(self.gateways)}} if self.gateways else {}
        files = {
            "hosts.yml": {"serving": {"children": replicas}} | gateways,
            "group_vars/all.yml": {"lab": True},
            "group_vars/serving.yml": variables,
            f"host_vars/{self.names[-1]}.yml": {"gpu_locked_clocks": {3: 1830}},
        }
        for name, content in files.items():
            self.write(name, content)

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Put a file into the inventory."""
        path = self.inventory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def up(self, deadline: Deadline) -> None:
        """Boot the hosts, bare."""
        took = self.provision("lab", "up", self.inventory, deadline=deadline)
        self.group = fleet_group(self.fleet.name)
        for name in self.gateways:
            come_first(self.fleet.name, name)
        say(f"{len(self.names) + len(self.gateways)} bare hosts up after {took.seconds:.0f} s")

    def down(self) -> None:
        """Leave nothing behind, whatever happened before."""
        subprocess.run(
            [PROVISION, "lab", "down", self.inventory], env=self.env, capture_output=True, check=False, timeout=300
        )

    @property
    def fleet(self) -> Path:
        """The fleet's own directory."""
        (found,) = Path(self.env["XDG_STATE_HOME"]).glob("provision/lab/*/overlay")
        return found.parent

    def provision(
        self, *words: str | Path, deadline: Deadline, memory: bool = False, codes: Sequence[int] = (0,)
    ) -> Took:
        """Call the command."""
        return run([PROVISION, *words], self.env, deadline, self.group, memory, codes)

    def bootstrap(self, *words: str, deadline: Deadline, memory: bool = False) -> tuple[Took, list[dict[str, Any]]]:
        """A bootstrap of the site's stages, with its events."""
        stage = ["--stage", self.stages] if self.stages else []
        took = self.provision("bootstrap", self.inventory, "--json", *stage, *words, deadline=deadline, memory=memory)
        return took, [json.loads(line) for line in took.out.splitlines() if line.startswith("{")]

    def drift(self, deadline: Deadline) -> Took:
        """A look at every host, which must find that all stands which was bootstrapped."""
        took = self.provision("drift", self.inventory, "--json", deadline=deadline, codes=(0, 2))
        document = json.loads(took.out.splitlines()[-1])
        proved = {host["name"]: [stage["stands"] for stage in host["stages"]] for host in document["hosts"]}
        fallen = [name for name in self.names if not proved.get(name) or not all(proved[name])]
        if fallen:
            raise OverError(f"provision drift finds that {', '.join(fallen)} does not stand:\n{took.out}")
        return took

    def variables(self, name: str) -> dict[str, Any]:
        """How a host is reached."""
        (path,) = self.fleet.glob(f"overlay/host_vars/{name}*")
        found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        return found

    def ssh(self, name: str, *options: str) -> list[str]:
        """The words of an SSH login on a connection of its own, independent of everything that is measured."""
        told = self.variables(name)
        how = ["-o", "ControlPath=none", "-o", "BatchMode=yes", "-i", told["ansible_ssh_private_key_file"]]
        how += shlex.split(told["ansible_ssh_common_args"])
        return ["ssh", *how, *options, f"{told['ansible_user']}@{told['ansible_host']}"]

    def sh(self, name: str, script: str, text: str | None = None) -> str:
        """What a shell script says that runs on a host as root."""
        command = [*self.ssh(name), f"sudo bash -c {shlex.quote(script)}"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            raise OverError(f"{name}: {script.splitlines()[0]} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout.strip()

    def logins(self, deadline: Deadline) -> Took:
        """A login to every host, all at once, with nothing but ssh."""
        logins = [shlex.join([*self.ssh(name), "true"]) for name in self.names]
        return run(["sh", "-c", " & ".join(logins) + " & wait"], self.env, deadline, self.group)

    def collect(self) -> dict[str, dict[str, Any]]:
        """What is managed on every host, read there; written down for the peers."""
        text = COLLECT.read_text(encoding="utf-8")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda name: self.sh(name, "python3 -", text), self.names))
        desired = {name: json.loads(answer) for name, answer in zip(self.names, answers, strict=True)}
        self.write_peers(desired)
        return desired

    def write_peers(self, desired: dict[str, dict[str, Any]] | None = None) -> None:
        """The peers' inventory: how to reach the hosts, and what is desired there."""
        keys = ("ansible_host", "ansible_user", "ansible_ssh_private_key_file", "ansible_ssh_common_args")
        hosts = {}
        for name in self.names:
            told = self.variables(name)
            hosts[name] = {key: told[key] for key in keys} | {"known_hosts": str(self.fleet / "known_hosts")}
            hosts[name] |= {"desired": desired[name]} if desired else {}
        self.peers.touch(mode=0o600)
        self.peers.write_text(json.dumps({"all": {"hosts": hosts}}), encoding="utf-8")

    def disconnect(self) -> None:
        """Close the SSH connections that Ansible and provision keep, so that the next command makes its own."""
        for socket in Path(self.env["ANSIBLE_SSH_CONTROL_PATH_DIR"]).glob("*"):
            command = ["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "host"]
            subprocess.run(command, capture_output=True, check=False, timeout=20)
