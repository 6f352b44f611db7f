"""Why a change would be made, as a person is told it: from the visit of its stage and what the host's receipt found."""

from __future__ import annotations

from collections.abc import Iterable

from provision import __version__
from provision.converge.scrub import Scrubber, secret_values
from provision.converge.standing import Standing, Visit
from provision.drift import Finding, StageReceipt
from provision.inventory import Fleet
from provision.inventory.places import REPLICA, Places
from provision.plan.changes import Step
from provision.plan.model import Origin, Reason

NAMED = 3  # variables that are named in a sentence


class Reasons:
    """The reasons of one plan."""

    def __init__(self, fleet: Fleet, standing: Standing) -> None:
        self._places = Places(fleet)
        self._standing = standing
        self._scrub = Scrubber(secret_values(fleet))
        self._of_visits: dict[tuple[str, str], Reason] = {}

    def of(self, host: str, visit: Visit | None, step: Step) -> Reason:
        """Why one change would be made.

        What the receipt of the stage found to be changed by somebody else is drift, whatever else the visit is for: the
        change would be made without that as well. A stage that no visit names is one that a visited stage takes along.
        """
        if visit is None:
            return Reason("follows", "follows the changes before it")
        receipt = self._receipt(host, visit.stage)
        finding = _found(receipt.findings if receipt else (), step, visit.kind == "drift")
        if finding:
            who = self._scrub.text(finding.who) if finding.who else None
            return Reason("drift", f"drifted: {who}" if who else "drifted", who=who)
        if (host, visit.stage) not in self._of_visits:
            self._of_visits[host, visit.stage] = self._visit(host, visit)
        return self._of_visits[host, visit.stage]

    def _visit(self, host: str, visit: Visit) -> Reason:
        if visit.kind == "inputs":
            return self._inputs(host, visit)
        why = self._scrub.text(visit.why)
        texts = {
            "first": "never bootstrapped",
            "code": f"provision {__version__}: the code of role {visit.stage} changed",
            "unfinished": f"unfinished: {why}",
            "drift": f"drifted: {why}",
            "asked": "asked for with --full",
            "follows": f"follows: {why}",
        }
        return Reason(visit.kind, texts.get(visit.kind, why))

    def _inputs(self, host: str, visit: Visit) -> Reason:
        receipt = self._receipt(host, visit.stage)
        before = receipt.inputs if receipt else {}
        after = self._standing.inputs[host][visit.stage]
        said, origins = [], []
        for name in visit.names:
            spot = self._places.of(name, host) if name in after else None
            path = self._places.shown(spot[0]) if spot else None
            origins.append(Origin(name, path, spot[1] if spot else None))
            verb = "changed" if name in before and name in after else "set" if name in after else "no longer set"
            what = "the replica's hosts" if name == REPLICA else name
            said.append(f"{what} {verb}" + (f" ({path}:{spot[1]})" if spot else ""))
        more = [f"and {len(said) - NAMED} more"] if len(said) > NAMED else []
        return Reason("inputs", ", ".join(said[:NAMED] + more), tuple(origins))

    def _receipt(self, host: str, stage: str) -> StageReceipt | None:
        return self._standing.receipts[host].stages.get(stage)


def _found(findings: Iterable[Finding], step: Step, by_name: bool) -> Finding | None:
    """The finding that a change answers: the same sentence; in a visit for drift alone, the same resource will do."""
    findings = list(findings)
    same = [item for item in findings if item.action == step.action]
    same += [item for item in findings if by_name and step.resource and item.resource == step.resource]
    return same[0] if same else None
