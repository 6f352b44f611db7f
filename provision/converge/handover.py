"""What a run tells Ansible, beside the user's inventory: three files in the run's directory.

`play.yml`: the playbooks of the stages that are to run, and no others, since Ansible reads all that it is given.

`run.yml`, an inventory source (its text is JSON, which reads faster): each host's replica and inputs, the hosts that
are left out, and for each stage a group of the hosts that it is to visit. `variables.json`: the run's id, whether
all is read again, where the verifier lies that hosts get, the hosts that a plan reboots, who hands weights on to whom,
and for each stage's play the group that it takes for its hosts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from provision.content import content_root
from provision.converge.inputs import Inputs
from provision.drift import verifier_text
from provision.inventory import Fleet
from provision.serving.endpoint import told_to_gateways
from provision.weights.chain import chains


def write_playbook(path: Path, stages: Sequence[str]) -> None:
    """Write `play.yml`: what playbooks/bootstrap.yml has of these stages."""
    playbooks = content_root() / "playbooks"
    names = ["unreached.yml", *(f"stages/{stage}.yml" for stage in stages)]
    plays = [{"name": name, "ansible.builtin.import_playbook": str(playbooks / name)} for name in names]
    path.write_text(json.dumps(plays), encoding="utf-8")


def write_source(
    path: Path, fleet: Fleet, visits: Mapping[str, Sequence[str]], inputs: Inputs, left_out: Collection[str]
) -> None:
    """Write `run.yml`: `visits` are stages by host; hosts left out stand in every group, as those that others lack."""
    hosts = {
        host.name: {
            "provision_replica": replica.name,
            "provision_inputs": {stage: inputs[host.name][stage] for stage in visits.get(host.name, ())},
        }
        for replica in fleet.replicas
        for host in replica.hosts
    }
    for host in fleet.managed:
        own = {stage: inputs[host.name][stage] for stage in visits.get(host.name, ())}
        hosts.setdefault(host.name, {"provision_inputs": own})
    groups = {
        f"visit_{stage}": {"hosts": dict.fromkeys([*(n for n, own in visits.items() if stage in own), *left_out])}
        for stage in dict.fromkeys(stage for own in visits.values() for stage in own)
    }
    told = {"provision_replicas": told_to_gateways(fleet)} if fleet.gateways else {}
    tree = {"all": {"hosts": hosts, "vars": told}, "unreached": {"hosts": dict.fromkeys(left_out)}, **groups}
    path.write_text(json.dumps(tree), encoding="utf-8")


def write_variables(
    path: Path, fleet: Fleet, run: str, stages: Sequence[str], *, full: bool, reboots: Collection[str] | None = None
) -> None:
    """Write `variables.json`, and beside it the verifier that the stage drift installs.

    `run` is another for each wave: what modules noted in one that failed must not get into the receipt of the next.
    With `full` what was verified once is read again. `reboots` are the only hosts that may be rebooted; None: any.
    """
    verifier = path.parent / "provision-verify"
    verifier.write_text(verifier_text(), encoding="utf-8")
    groups = {f"provision_hosts_{stage}": f"visit_{stage}" for stage in stages}
    own = {"provision_run": run, "provision_full": full, "provision_verifier_file": str(verifier)}
    own |= {} if reboots is None else {"provision_reboots": sorted(reboots)}
    variables = {**own, "provision_weights_chains": chains(fleet), **groups}
    path.write_text(json.dumps(variables), encoding="utf-8")
