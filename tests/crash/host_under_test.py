"""One simulated host as the subject of a crash: its bare state kept as a copy of its disk, put back in seconds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import oracle
from rehearsal import Run, Site
from sweep import Ran

from provision.lab import disk, fleet, login
from provision.lab.host import LabHost

HOST = "node-1"
# Everything that needs no serving environment: seconds for each stage.
STAGES = ("site", "host", "swap", "driver", "gpu", "cuda", "rdma", "drift")
INVENTORY = {
    "hosts.yml": "serving:\n  children:\n    tiny_a:\n      hosts:\n        node-1:\n",
    "host_vars/node-1.yml": "swap_size: 64M\ngpu_locked_clocks: { 3: 1830 }\ngpu_power_limit: { 1: 450 }\n"
    # Without a compiler, which is unpacked for longer than all else takes.
    "host_packages: [ca-certificates, numactl, pciutils]\n"
    "cuda_toolkit: true\ncuda_nccl: true\n"
    "host_hugepages: { 2M: 16 }\nhost_kernel_parameters: [nmi_watchdog=0]\n"
    "rdma_packages: [infiniband-diags]\nrdma_gpudirect: peermem\nrdma_max_read_request: 4096\n",
}

RECEIPTS = "import glob, json; print(json.dumps([json.load(open(path)) for path in glob.glob('/var/lib/provision/receipts/*.json')]))"


class HostUnderTest:
    """A fleet of one host. Its disk and hardware are kept under names: `bare`, and whatever is kept later."""

    def __init__(self, work: Path, stages: Sequence[str] = STAGES) -> None:
        self.work, self.stages = work, stages
        self.site = Site(Path(sys.executable).parent / "provision", work / "inventory", work / "state")
        self.resets, self._sockets = 0, ""

    def up(self) -> HostUnderTest:
        """Bring the host up, and keep what it is before anything was done to it."""
        self.site.run("init", self.site.directory, "--from", "lab")
        for path in (self.site.directory / "host_vars").iterdir():
            path.unlink()
        for name, text in INVENTORY.items():
            self.site.variables(name, text)
        serving = self.site.directory / "group_vars/serving.yml"
        text = re.sub(r"(?m)^vllm_executor:.*\n", "", serving.read_text())
        serving.write_text(re.sub(r"(?m)^(vllm_tensor_parallel_size:) 2", r"\1 1", text))
        self.site.up()
        os.environ["XDG_STATE_HOME"] = str(self.site.state)  # where the lab's library looks
        self.keep("bare")
        return self

    def down(self) -> None:
        self.site.down()

    @property
    def host(self) -> LabHost:
        found = fleet.find(self.site.directory)
        assert found is not None
        return found.hosts[HOST]

    def keep(self, name: str) -> None:
        """Cut the power and keep disk and hardware under a name; the host is on again afterwards."""
        host, kept = self.host, self.work / "kept" / name
        kept.mkdir(parents=True, exist_ok=True)
        host.power_off()
        disk.wait_until_free(host.directory / "disk.img")
        _copy(host.directory / "disk.img", kept / "disk.img")
        shutil.copyfile(host.state_file, kept / "state.json")
        self.on()

    def put_back(self, name: str) -> None:
        """The host as it was kept, freshly booted."""
        host, kept = self.host, self.work / "kept" / name
        host.power_off()
        disk.wait_until_free(host.directory / "disk.img")
        _copy(kept / "disk.img", host.directory / "disk.img")
        shutil.copyfile(kept / "state.json", host.state_file)
        self.on()

    def on(self) -> None:
        found = fleet.find(self.site.directory)
        assert found is not None
        self.host.power_on()
        login.await_answers(found.directory, [self.host], lambda _: None)

    # What `sweep` asks of a subject.
    def reset(self) -> None:
        self.resets += 1
        # Ansible keeps connections open for a minute; those to the host that was must not be found by its successor.
        self._sockets = tempfile.mkdtemp(prefix="crash-", dir="/tmp")
        self.put_back("bare")

    def run(self, environment: dict[str, str], *options: str) -> Ran:
        run = self.bootstrap(*options, environment=environment, code=None)
        return ran(run)

    def state(self) -> oracle.State:
        return oracle.read(self.host)

    # What the tests of faults use.
    def bootstrap(self, *options: str, environment: dict[str, str] | None = None, code: int | None = 0) -> Run:
        self.site.environment = self.environment(environment)
        return self.site.bootstrap("--stage", ",".join(self.stages), *options, code=code)

    def environment(self, more: dict[str, str] | None = None) -> dict[str, str]:
        sockets = {"ANSIBLE_SSH_CONTROL_PATH_DIR": self._sockets} if self._sockets else {}
        return sockets | (more or {})

    def begin(self, *options: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a bootstrap and return at once; its events come on its standard output."""
        self.site.environment = self.environment(environment)
        return self.site.begin("bootstrap", self.site.directory, "--json", "--stage", ",".join(self.stages), *options)

    def receipts(self) -> dict[str, dict[str, Any]]:
        """The receipts that the host keeps, by stage."""
        found = json.loads(self.host.run(["python3", "-c", RECEIPTS]).stdout)
        return {receipt["stage"]: receipt for receipt in found}

    def step(self, module: str) -> dict[str, Any]:
        """The first step of a module in the host's receipts."""
        return next(step for each in self.receipts().values() for step in each["steps"] if step["module"] == module)

    def sh(self, script: str, check: bool = True) -> str:
        """A shell script as root on the host, past its login."""
        return self.host.run(["bash", "-c", script], check=check).stdout


def ran(run: Run) -> Ran:
    """A call of the command, as a sweep looks at it."""
    events = [json.loads(line) for line in run.out.splitlines() if line.startswith("{")]
    tasks = [event for event in events if event["type"] == "task_finished"]
    changes = []
    for event in tasks:
        if event["status"] == "changed":
            changes += [f"{event['stage']}: {sentence}" for sentence in event.get("actions") or [event["task"]]]
    return Ran(run.code, changes, list(dict.fromkeys(event["stage"] for event in tasks)), run.text)


def await_task(process: subprocess.Popen[str], task: str, seconds: float = 120) -> None:
    """Read the events of a run until it has begun a task."""
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    for line in process.stdout:
        event = json.loads(line)
        if event["type"] == "task_started" and event["task"] == task:
            return
        assert time.monotonic() < deadline, f"the task {task!r} did not begin within {seconds} s"
    raise AssertionError(f"the run ended before it began the task {task!r}: {process.stderr and process.stderr.read()}")


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", source, target], check=True)
