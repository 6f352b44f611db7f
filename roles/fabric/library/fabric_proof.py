#!/usr/bin/python
"""Ansible module: the GPUs of a replica have shown that they reach one another, right and fast enough."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_driver import loaded_module, query_gpus
from ansible.module_utils.provision_host import (
    Change,
    HostError,
    absent_change,
    converge,
    host_lock,
    read_text,
    remove_file,
    run,
    write_file,
)
from ansible.module_utils.provision_transient import WORK, UnitError, journal

DOCUMENTATION = r"""
module: fabric_proof
short_description: Has the GPUs of a replica prove that they reach one another
description:
  - What vLLM will do when it serves is done before it starts, by the same torch and NCCL, in the same environment and
    confinement. A process for each GPU of the replica joins the others; they reduce and send tensors, and compare what
    arrives.
  - V(cleared) stops what an earlier run left at work, which waits for hosts that may never join it. V(begun), on no
    host before all are cleared, starts this host's part as C(provision-fabric-proof.service) and does not wait, since
    it ends only when all hosts of the replica have begun. V(ended) waits, judges, and keeps the finding in O(record).
  - It is proved again when the hosts, their GPUs, or anything of O(based_on) differ from those of the record, and when
    what was found then is not what is expected now.
  - An engine that leaves the GPUs too little memory is stopped by the unit, and started again by it however it ends.
options:
  state:
    description: Which part is wanted.
    type: str
    choices: [cleared, begun, ended]
    default: begun
  again:
    description: Prove although the record of this host holds, because that of another host of the replica does not.
    type: bool
    default: false
  hosts:
    description: The hosts of the replica, in their order.
    type: list
    elements: str
    required: true
  first:
    description: The number of this host's first rank.
    type: int
    required: true
  here:
    description: Ranks on this host, one for each GPU.
    type: int
    required: true
  world:
    description: Ranks on all hosts. With fewer than two there is nothing to prove, and no record.
    type: int
    required: true
  master:
    description: C(ADDRESS:PORT) at which the first rank is found.
    type: str
    required: true
  device:
    description: What talks, V(cuda) by NCCL, or V(cpu) by gloo.
    type: str
    choices: [cuda, cpu]
    required: true
  python:
    description: Python of the serving environment.
    type: path
    required: true
  program:
    description: What is run.
    type: path
    required: true
  user:
    description: Who runs it.
    type: str
    required: true
  environment_file:
    description: The description of the host's network.
    type: path
    required: true
  properties:
    description: Properties of the unit, by which it is confined as what serves.
    type: list
    elements: str
    default: []
  based_on:
    description: What else the proof depends on, such as versions and hashes; C(driver) must be loaded when it begins.
    type: dict
    default: {}
  expect:
    description:
      - How ranks of different hosts must reach one another. V(gpudirect) is RDMA to the GPUs' memory, V(rdma) is RDMA,
        V(any) is whatever there is.
    type: str
    choices: [gpudirect, rdma, any]
    default: any
  minimum:
    description: The least speed of the all-reduce, in GB/s as nccl-tests count it (busbw). 0 is none.
    type: float
    default: 0
  timeout:
    description: Seconds in which all must have joined and talked.
    type: int
    default: 300
  record:
    description: Where the proof is kept.
    type: path
    default: /var/lib/provision/fabric-proof.json
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Have the GPUs of two hosts prove that they reach one another
  fabric_proof:
    hosts: [gpu-11, gpu-12]
    first: 8
    here: 8
    world: 16
    master: 10.1.4.71:29511
    device: cuda
    python: /opt/provision/env/5d1ac6b2f9c0/bin/python
    program: /opt/provision/bin/provision-fabric-proof
    user: vllm
    environment_file: /etc/provision/fabric.env
    expect: gpudirect
"""

RETURN = r"""
found:
  description: What the proof found, of O(state=ended) when there was one.
  returned: when there was a proof
  type: dict
  sample: {ranks: 16, backend: nccl, all_reduce_gb_per_s: 214.6, paths: {NET/IB/GDRDMA: 16, P2P: 112}}
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Had the 16 GPUs of gpu-11 and gpu-12 prove that they reach one another.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry when it is to be proved.
  returned: always
  type: list
  elements: dict
"""

UNIT = "provision-fabric-proof"
GPUS = "/proc/driver/nvidia/gpus/*/information"
ENGINES = ("ray-head", "ray-worker", "vllm")
ROOM = "room"  # names of the units that make room
SYSTEMCTL = "/usr/bin/systemctl"
STOP_S = 600  # that an engine may take to stop
NEEDS_MIB = 2048  # that must be free on each GPU, as the program says too
WAITED = re.compile(r"time.?out|timed out|in time|join|connect|socket|remote|peer", re.IGNORECASE)
AFTERWARDS = (
    "What served was not changed. Behind a gateway the replica stays out of rotation until a proof succeeds; "
    "provision serve admit takes it back as it is."
)
SLACK_S = 60  # that systemd gives the program beyond its own time


def basis(params: dict[str, Any]) -> dict[str, Any]:
    """What a proof holds for. Another of any of these has to be proved anew."""
    names = ("hosts", "here", "world", "device", "based_on")
    return {**{name: params[name] for name in names}, "cards": cards()}


def cards() -> list[str]:
    """The GPUs by their UUIDs; none as long as no driver is loaded, which other stages see to."""
    texts = (read_text(path) or "" for path in sorted(glob.glob(GPUS)))
    return [uuid for text in texts for uuid in re.findall(r"^GPU UUID:\s*(\S+)", text, re.MULTILINE)]


def recorded(path: str) -> dict[str, Any]:
    """What was proved last; empty if nothing that can be read."""
    try:
        record = json.loads(read_text(path) or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def differences(record: dict[str, Any], params: dict[str, Any]) -> list[str]:
    """Why the record does not hold; empty if it does."""
    if not record:
        return ["not proved yet"]
    proved, wanted = record.get("basis") or {}, basis(params)
    others = [f"{name}: another than was proved" for name in wanted if proved.get(name) != wanted[name]]
    return others or objection(params, record["found"]).splitlines()[:1]


def plan(params: dict[str, Any]) -> Iterator[Change]:
    """Begin unless it is proved."""
    if params["world"] < 2:
        yield from absent_change(params["record"])
        return
    why = differences(recorded(params["record"]), params)
    if params["again"]:
        why = why or ["not proved by another host of the replica"]
    if why:
        what = "GPUs" if params["device"] == "cuda" else "processes"
        yield Change(
            f"Had the {params['world']} {what} of {together(params['hosts'])} prove that they reach one another.",
            partial(begin, params),
            params["record"],
            "".join(f"{line}\n" for line in why),
            "proved\n",
            effect(),
        )


def together(names: list[str]) -> str:
    """Names as a sentence has them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


def effect() -> str:
    """It shares links and memory with an engine, which must have nothing to do then, and may have to make room."""
    serves = any(os.path.exists(f"/etc/systemd/system/{name}.service") for name in ENGINES)
    return "restart" if serves else "none"


def clear() -> None:
    """Stop what an earlier run left at work. What made room for it is noted still, since it comes back only now."""
    run(["systemctl", "stop", UNIT], check=False)
    remove_file(f"{WORK}/{UNIT}/found.json")


def begin(params: dict[str, Any]) -> None:
    """Forget the last proof and start this host's part of another."""
    expect_driver(params)
    folder = Path(WORK, UNIT)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    engines = in_the_way(params, folder / ROOM)
    remove_file(params["record"])
    write_file(f"{folder}/found.json", "", 0o600)
    numbers = [f"--{name}={params[name]}" for name in ("first", "here", "world", "master", "device", "timeout")]
    properties = [
        *params["properties"],
        *room(engines),
        f"EnvironmentFile={params['environment_file']}",
        "Environment=HOME=/tmp",
        "LimitMEMLOCK=infinity",
        "LimitNOFILE=1048576",
        f"RuntimeMaxSec={params['timeout'] + SLACK_S}",
        f"StandardOutput=append:{folder}/found.json",  # not truncate, which ExecStopPost would do again
    ]
    argv = ["systemd-run", "--quiet", "--collect", "--no-block", f"--unit={UNIT}", f"--uid={params['user']}"]
    run([*argv, *(f"--property={line}" for line in properties), params["python"], params["program"], *numbers])


def expect_driver(params: dict[str, Any]) -> None:
    """A proof by another driver than the wanted one would be kept as a proof of that."""
    wanted = params["based_on"].get("driver")
    if params["device"] == "cuda" and wanted and (loaded := loaded_module().version) != wanted:
        raise HostError(
            f"Driver {wanted} is wanted and {loaded or 'none'} is loaded: what the GPUs show now proves nothing for it."
            " Let the stage driver go first: provision bootstrap, without --stage."
        )


def in_the_way(params: dict[str, Any], note: Path) -> list[str]:
    """The engine's units that run, where they leave the GPUs that take part too little memory; noted beside the proof.

    Those that an earlier proof stopped are in the way again, though they may not have loaded much since.
    """
    if params["device"] == "cpu":
        return []
    noted = (read_text(str(note)) or "").split()
    if not noted and all(free >= NEEDS_MIB for free in free_memory()[: params["here"]]):
        return []
    states = run(["systemctl", "is-active", *ENGINES], check=False).out.split()
    running = [name for name, state in zip(ENGINES, states) if state in ("active", "activating")]  # noqa: B905  Python 3.9
    write_file(str(note), " ".join(running), 0o600)
    return running


def free_memory() -> list[float]:
    """MiB that are free on each GPU."""
    told = [row["memory.free"] for row in query_gpus(["memory.free"])]
    try:
        return [float(each) for each in told]
    except ValueError:
        raise HostError(f"nvidia-smi tells no free memory of each GPU: {', '.join(told)}.") from None


def room(engines: list[str]) -> list[str]:
    """Properties by which systemd itself stops the engine before the proof and starts it after, whoever dies then."""
    names = " ".join(engines)
    stop, start = f"ExecStartPre=+{SYSTEMCTL} stop {names}", f"ExecStopPost=+{SYSTEMCTL} start --no-block {names}"
    return [stop, start, f"TimeoutStartSec={STOP_S}"] if engines else []


def is_at_work() -> bool:
    """Whether the unit runs, is about to, or gives back what it took."""
    told = run(["systemctl", "show", UNIT, "--property=ActiveState", "--property=Job", "--value"], check=False).out
    return bool(set(told.split()) - {"inactive", "failed", "0"})


def end(params: dict[str, Any]) -> dict[str, Any]:
    """Wait for what was begun, judge it, keep it; empty if nothing was."""
    folder, started = Path(WORK, UNIT), time.time()
    if not (folder / "found.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        return {}
    begun = folder.stat().st_mtime
    while is_at_work():
        time.sleep(0.2)
    try:
        found = json.loads(read_text(f"{folder}/found.json") or "{}")
    except ValueError:
        found = {}
    shutil.rmtree(folder, ignore_errors=True)
    if not found:
        raise UnitError(UNIT, journal(UNIT, min(begun, started)))
    wrong = objection(params, found)
    if wrong:
        raise HostError(f"{wrong}\nWhat it said: journalctl -u {UNIT}. {AFTERWARDS}")
    with host_lock(f"module {UNIT}"):
        record = {"basis": basis(params), "found": found, "at": int(time.time())}
        write_file(params["record"], json.dumps(record, indent=1, sort_keys=True) + "\n", 0o644)
    return dict(found)


def objection(params: dict[str, Any], found: dict[str, Any]) -> str:
    """What is wrong with what was found; empty if nothing is."""
    if "error" in found:
        return failure(params, found["error"])
    speed = found["all_reduce_gb_per_s"]
    if found["backend"] == "nccl" and (wrong := wrong_way(params, found["paths"], speed)):
        return wrong
    if speed < params["minimum"]:
        ways = ", ".join(found["paths"]) or "paths that NCCL did not tell"
        return (
            f"The all-reduce over {found['ranks']} GPUs moves {speed:.1f} GB/s, over {ways}; "
            f"fabric_minimum is {params['minimum']:g}."
        )
    return ""


def failure(params: dict[str, Any], error: str) -> str:
    """Why there is no proof. Only who waited for others is sent to look at the network."""
    said = f"The proof that the GPUs of {together(params['hosts'])} reach one another failed: {error}"
    if not WAITED.search(error):
        return said
    return (
        f"{said}\nWhere another host of the replica failed, its own message says why. If none did: all must reach "
        f"{params['master']} and each other on any port, over the network of fabric.env."
    )


def wrong_way(params: dict[str, Any], paths: dict[str, int], speed: float) -> str:
    """What is wrong with the way between hosts; empty if nothing is, or nothing is expected."""
    net = [path for path in paths if path.startswith("NET/")]
    if params["expect"] == "any" or len(params["hosts"]) == 1:
        return ""
    if not net:
        return (
            f"NCCL tells no path between hosts ({', '.join(paths) or 'none at all'}), so nobody knows whether it is "
            "RDMA. To have it so: fabric_expect: any."
        )
    if any("/Socket" in path for path in net):
        return (
            f"NCCL reaches the other hosts over TCP (NET/Socket, {speed:.1f} GB/s), although this host has RDMA ports. "
            "Look at: provision preflight, ibstat, /etc/provision/fabric.env. To have it so: fabric_expect: any."
        )
    if params["expect"] == "gpudirect" and any("/GDRDMA" not in path for path in net):
        return (
            f"NCCL reaches the other hosts over {', '.join(net)} ({speed:.1f} GB/s), by way of the host's memory: "
            "GPUDirect is off. The driver's modules must be open (dma-buf) or nvidia_peermem loaded, and no ACS stand "
            "between GPU and adapter; provision preflight looks at each. To have it so: fabric_expect: rdma."
        )
    return ""


def main() -> None:
    number, text, path = ({"type": kind, "required": True} for kind in ("int", "str", "path"))
    spec = {
        "state": {"type": "str", "choices": ["cleared", "begun", "ended"], "default": "begun"},
        "again": {"type": "bool", "default": False},
        "hosts": {"type": "list", "elements": "str", "required": True},
        "first": number,
        "here": number,
        "world": number,
        "master": text,
        "device": {"type": "str", "choices": ["cuda", "cpu"], "required": True},
        "python": path,
        "program": path,
        "user": text,
        "environment_file": path,
        "properties": {"type": "list", "elements": "str", "default": []},
        "based_on": {"type": "dict", "default": {}},
        "expect": {"type": "str", "choices": ["gpudirect", "rdma", "any"], "default": "any"},
        "minimum": {"type": "float", "default": 0},
        "timeout": {"type": "int", "default": 300},
        "record": {"type": "path", "default": "/var/lib/provision/fabric-proof.json"},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    params = module.params
    if params["state"] == "begun":
        converge(module, lambda: plan(params), forget=["again"])
    found: dict[str, Any] = {}
    try:
        if params["state"] == "ended" and not module.check_mode:
            found = end(params)
        elif not module.check_mode:
            clear()
    except HostError as error:
        module.fail_json(msg=str(error), actions=[], effects=[], diff=[])
    module.exit_json(changed=False, actions=[], effects=[], diff=[], **({"found": found} if found else {}))


if __name__ == "__main__":
    main()
