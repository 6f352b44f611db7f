"""A fleet of two replicas whose hosts tell what a test says, and runs that come to what a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from provision.converge import Change, HostResult, Result
from provision.converge.inputs import inputs_of
from provision.converge.result import Difference
from provision.converge.standing import Standing, decide
from provision.drift import Finding, HostReceipts, StageReceipt
from provision.inventory import Fleet, load_fleet

FILES = {
    "hosts.yml": """\
serving:
  children:
    r_a:
      hosts:
        n1: {ansible_host: 10.0.0.1}
        n2: {ansible_host: 10.0.0.2}
    r_b:
      hosts:
        n3: {ansible_host: 10.0.0.3}
        n4: {ansible_host: 10.0.0.4}
""",
    "group_vars/serving.yml": """\
hardware_profile: 8xh20-96
weights_repo: org/model
vllm_tensor_parallel_size: 8
vllm_pipeline_parallel_size: 2
swap_size: 64G
""",
    "host_vars/n2.yml": "gpu_locked_clocks: {3: 1830}\n",
    "stack.lock.yml": """\
stack:
  driver: 580.126.20
  vllm: 0.32.0
  ray: 2.60.0
  uv: 0.13.9
  huggingface_hub: 2.4.0
""",
}
STAGES = ("host", "swap", "driver", "gpu")


def change(
    stage: str, action: str, resource: str = "", before: str = "", after: str = "", effect: str = "none"
) -> Change:
    """One change of one module: one sentence, one difference."""
    differences = (Difference(resource, f"{before}\n", f"{after}\n"),) if resource else ()
    return Change(stage, f"Converge {stage}", (action,), differences, (effect,))


SWAPPINESS = change("host", "Set vm.swappiness to 1 (it was 60).", "vm.swappiness", "60", "1")
SWAP = change(
    "swap", "Made the swap file /swapfile of 64 GiB.", "/swapfile", "no whole swap file", "swap file of 64 GiB"
)
DRIVER = change(
    "driver", "Installed nvidia-open of driver 580.126.20.", "nvidia-driver", "580.95.05", "580.126.20", "reboot"
)


@dataclass
class World:
    """What the hosts are, as far as a plan can tell."""

    path: Path
    told: dict[str, HostReceipts] = field(default_factory=dict)
    outside: dict[str, HostReceipts] = field(default_factory=dict)
    foretold: dict[str, list[Change]] = field(default_factory=dict)
    done: dict[str, list[Change]] | None = None  # None: just as foretold
    ended: dict[str, HostResult] = field(default_factory=dict)
    runs: list[dict[str, object]] = field(default_factory=list)
    seconds: float | None = None
    before_lease: Callable[[], None] = lambda: None  # what others do before the run holds the hosts

    STAGES = STAGES
    SWAPPINESS, SWAP, DRIVER = SWAPPINESS, SWAP, DRIVER
    change = staticmethod(change)

    def fleet(self) -> Fleet:
        return load_fleet(self.path)

    def write(self, file: str, text: str) -> None:
        (self.path / file).parent.mkdir(parents=True, exist_ok=True)
        (self.path / file).write_text(text, encoding="utf-8")

    def bootstrapped(self, serving: Iterable[str] = (), kv_tokens: int | None = 1000) -> None:
        """Every stage stands on every host, with the inputs of now."""
        fleet = self.fleet()
        for name, stages in inputs_of(fleet).items():
            receipts = {
                stage: StageReceipt(stage, dict(inputs), "2026-11-22T06:00:00Z") for stage, inputs in stages.items()
            }
            serves = (fleet.replica_of(name) or fleet.replicas[0]).name in serving
            tokens = kv_tokens if serves else None
            self.told[name] = HostReceipts(name, serving=serves, kv_tokens=tokens, stages=receipts)

    def bare(self) -> None:
        self.told = {host.name: HostReceipts(host.name) for host in self.fleet().serving}

    def drifted(self, host: str, made_good_by: Change, who: str | None = None) -> None:
        """A stage's receipt finds what a change would set right."""
        stage, difference = made_good_by.stage, made_good_by.differences[0]
        finding = Finding(
            stage,
            "module",
            made_good_by.actions[0],
            difference.resource,
            difference.before,
            difference.after,
            made_good_by.effects[0],
            who,
        )
        told = self.told[host]
        receipt = replace(told.stages[stage], findings=(*told.stages[stage].findings, finding))
        self.told[host] = replace(told, stages={**told.stages, stage: receipt})

    def stand(self, fleet, hosts, stages, *, full=False, who=True, on_host=lambda told: None) -> Standing:
        return decide(fleet, {host.name: self.told[host.name] for host in hosts}, inputs_of(fleet), stages, full=full)

    def verify(self, hosts, stages, **_options) -> list[HostReceipts]:
        return [self.outside.get(host.name) or self.told[host.name] for host in hosts]

    def bootstrap(self, fleet, *, limit=None, stages=(), check=False, approve=lambda: None, **options) -> Result:
        if not check:
            self.before_lease()
            approve()
        self.runs.append({"limit": limit, "stages": stages, "check": check, **options})
        changes = self.foretold if check or self.done is None else self.done
        hosts = {name: HostResult(name, changes=list(changes.get(name, ()))) for name in fleet.hosts}
        return Result("id", self.path, self.path / "hosts.yml", check=check, hosts=hosts | self.ended)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    world = World(tmp_path / "inventory")
    for file, text in FILES.items():
        world.write(file, text)
    for module in ("make", "apply"):
        monkeypatch.setattr(f"provision.plan.{module}.stand", world.stand)
        monkeypatch.setattr(f"provision.plan.{module}.bootstrap", world.bootstrap)
    monkeypatch.setattr("provision.plan.blast.verify", world.verify)
    monkeypatch.setattr("provision.plan.make.estimate", lambda inventory, work, lab: world.seconds if work else None)
    return world
