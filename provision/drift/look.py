"""One look at a fleet: what drifted on each host, what was never proved there, where the inventory has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from provision.converge.inputs import CODE, inputs_of
from provision.converge.stages import STAGES, stages_of
from provision.drift.receipts import HARMLESS, Finding, HostReceipts, StageReceipt
from provision.drift.survey import verify
from provision.inventory import Fleet, Host


@dataclass(frozen=True)
class HostLook:
    """One host: what it told; the stages that no run has finished there; and by stage, which inputs changed since."""

    receipts: HostReceipts
    missing: tuple[str, ...] = ()
    outdated: Mapping[str, tuple[str, ...]] | None = None

    @property
    def name(self) -> str:
        """The host's name."""
        return self.receipts.host

    @property
    def stages(self) -> tuple[StageReceipt, ...]:
        """The receipts in the order of the stages."""
        return tuple(self.receipts.stages[name] for name in STAGES if name in self.receipts.stages)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All that differs."""
        return tuple(finding for stage in self.stages for finding in stage.findings)

    @property
    def failed(self) -> bool:
        """Whether something kept the host, or a stage of it, from being verified, other than that it is gone."""
        trouble = self.receipts.trouble
        return bool(trouble and not trouble.unreachable) or any(stage.error for stage in self.stages)

    @property
    def unreachable(self) -> bool:
        """Whether the host does not answer."""
        return bool(self.receipts.trouble and self.receipts.trouble.unreachable)

    @property
    def stands(self) -> bool:
        """Whether all is proved to be as it was left."""
        return not self.receipts.trouble and not self.missing and all(stage.stands for stage in self.stages)

    @property
    def changed_inputs(self) -> tuple[str, ...]:
        """The names of all inputs that changed, each once."""
        return tuple(dict.fromkeys(name for names in (self.outdated or {}).values() for name in names))


def look(fleet: Fleet, hosts: Sequence[Host]) -> list[HostLook]:
    """Verify the receipts of all stages on these hosts, and compare what they were made from with the inventory."""
    inputs = inputs_of(fleet)
    return [
        _host(told, inputs[told.host], stages_of(fleet, told.host, done=told.stages)) for told in verify(hosts, STAGES)
    ]


def _host(told: HostReceipts, wanted: Mapping[str, Mapping[str, str]], stages: Sequence[str]) -> HostLook:
    if told.trouble:
        return HostLook(told)
    missing = tuple(stage for stage in stages if stage not in told.stages)
    changed = {name: _changed(receipt, wanted.get(name, {})) for name, receipt in told.stages.items()}
    return HostLook(told, missing, {name: names for name, names in changed.items() if names})


def _changed(receipt: StageReceipt, wanted: Mapping[str, str]) -> tuple[str, ...]:
    """The inputs that are not those from which the receipt was made; one that nobody can read has none to compare."""
    if not receipt.inputs and receipt.error:
        return ()
    return receipt.changed_inputs(wanted)


@dataclass(frozen=True)
class Spared:
    """A stage of a host that has drifted and is not healed, and why."""

    host: str
    stage: str
    why: str


def healable(looks: Iterable[HostLook]) -> tuple[dict[str, tuple[str, ...]], list[Spared]]:
    """The stages of each host that can be set right unnoticed by whoever is served, and those that are left alone."""
    stages: dict[str, tuple[str, ...]] = {}
    spared: list[Spared] = []
    for host in looks:
        why = {receipt.stage: _objection(host, receipt) for receipt in host.stages if not receipt.stands}
        spared += [Spared(host.name, stage, reason) for stage, reason in why.items() if reason]
        if good := tuple(stage for stage, reason in why.items() if not reason):
            stages[host.name] = good
    return stages, spared


def _objection(host: HostLook, receipt: StageReceipt) -> str:
    """Why a stage is not healed; empty where it can be."""
    if host.receipts.busy:
        return f"process {host.receipts.busy.pid} is changing the host"
    if receipt.error:
        return "it could not be verified"
    if names := (host.outdated or {}).get(receipt.stage):
        return f"{_names(names)} changed since, so a bootstrap would do more than repair"
    worst = [finding.effect for finding in receipt.findings if finding.effect not in HARMLESS]
    if worst:
        return f"to repair it takes a {worst[-1].replace('gpu_reset', 'reset of the GPU')}"
    return f"{', '.join(receipt.facts)} differs, and what that takes is not known" if receipt.facts else ""


def _names(names: Sequence[str]) -> str:
    """Changed inputs as a person calls them."""
    return ", ".join(dict.fromkeys("provision itself" if name in CODE else name for name in names))


def together(stages: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Hosts with the same stages to heal, so that each group takes one run."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for host, own in stages.items():
        groups.setdefault(own, []).append(host)
    yield from ((tuple(hosts), own) for own, hosts in groups.items())
