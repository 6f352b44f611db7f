"""Looks at the real GPUs of this machine through the code that would set them up, and changes nothing: docs/testing.md.

As root, from a checkout: `.venv/bin/python tests/cards/look.py FOLDER`. What was seen comes into FOLDER, without what
identifies the machine. Ends with 1 where a setting of a card moved, or something did not end as it should.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from provision.inventory import Fleet, load_fleet  # noqa: E402
from provision.plan.decode import decode  # noqa: E402
from provision.preflight import SETTINGS  # noqa: E402
from provision.preflight.bundle import program  # noqa: E402
from provision.preflight.facts import Facts  # noqa: E402
from provision.preflight.judge import judge  # noqa: E402
from provision.preflight.request import request_of  # noqa: E402
from provision.preflight.survey import Sight  # noqa: E402
from provision.ssh.fit import python_of  # noqa: E402

STAND_IN = Path(__file__).parent / "stand_in"
STAGES = "driver,gpu,cuda,rdma"
# Lines of `nvidia-smi -q` that move by themselves, and the sections of which every line does.
READINGS = "Timestamp|Tx Throughput|Rx Throughput|Performance State|Used|Free|Processes|.*Temp|.*Power Draw"
MOVES = re.compile(rf"\s*({READINGS}|.*Correctable.*|Replays Since Reset)\s*:")
MOVING = ("Clocks", "Utilization", "Clocks Event Reasons", "Clocks Event Reasons Counters", "Processes")
IDENTIFIES = ("Serial Number", "GPU UUID", "GPU PDI", "Chassis Serial Number", "GPU Fabric GUID", "ClusterUUID")
KEPT = ("/etc", "/boot", "/opt", "/var/lib/provision", "/run/provision")  # where the roles write
READ = ("class", "vendor", "device", "numa_node", "iommu_group/type")


def ask(*argv: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, errors="replace", cwd=ROOT, check=False)


def settings() -> list[str]:
    """All that nvidia-smi says of the cards, but what moves while nobody sets anything."""
    kept, section, depth = [], "", -1
    for line in ask("nvidia-smi", "-q").stdout.splitlines():
        indent = len(line) - len(line.lstrip())
        if indent <= depth:
            section, depth = "", -1
        if not section and line.strip() in MOVING:
            section, depth = line.strip(), indent
        if not section and not MOVES.match(line):
            kept.append(line)
    return kept


def card(field: str) -> list[str]:
    return ask("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits").stdout.split()


def prepare(work: Path) -> None:
    """A PATH on which nvidia-smi is watched, and what this machine lacks has a stand-in."""
    real = shutil.which("nvidia-smi")
    if os.geteuid() != 0 or not real:
        sys.exit("This reads what roles read: it needs root, and nvidia-smi on the PATH.")
    lacking = {"systemctl": not Path("/run/systemd/system").is_dir(), "ip": not shutil.which("ip")}
    (work / "bin").mkdir()
    for name in ["nvidia-smi", *(name for name, lacks in lacking.items() if lacks)]:
        shutil.copy(STAND_IN / name, work / "bin")
        print(f"· {name}: {'watched' if name == 'nvidia-smi' else 'not on this machine, so a stand-in answers'}")
    os.environ.update(
        PATH=f"{work / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        LOOK_SMI=real,
        LOOK_QUERIES=str(work / "queries.jsonl"),
        ANSIBLE_CONFIG=str(ROOT / "ansible.cfg"),
        ANSIBLE_HOME=str(work / "ansible"),
        ANSIBLE_LOCAL_TEMP=str(work / "ansible"),
        ANSIBLE_REMOTE_TEMP=str(work / "ansible"),
        ANSIBLE_NOCOLOR="1",
    )


def inventory(work: Path, loaded: str) -> Path:
    """This machine as the only host, wanting the driver that runs."""
    shown = json.loads(ask("ip", "-json", "address", "show").stdout or "[]")
    own = {link["ifname"]: [each["local"] for each in link["addr_info"]] for link in shown if link["ifname"] != "lo"}
    address = next((each for addresses in own.values() for each in addresses), "127.0.0.1")
    host = {"ansible_connection": "local", "ansible_become": False, "ray_address": address, "driver_version": loaded}
    host |= {} if any(own.values()) else {"ray_interface": next(iter(own), "lo")}
    host["ansible_python_interpreter"] = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    host |= {"hardware_profile": "", "weights_repo": "lab/none", "weights_revision": "main", "reboot_allowed": False}
    hosts = {"serving": {"children": {"here": {"hosts": {"localhost": host}}}}}
    (work / "inventory").mkdir()
    (work / "inventory/hosts.yml").write_text(yaml.safe_dump(hosts))
    return work / "inventory"


def preflight(fleet: Fleet) -> tuple[dict, list[str]]:
    """What the program that preflight sends says here, and what its rules make of that."""
    (replica,) = fleet.replicas
    host = replica.hosts[0]
    done = ask(python_of(host), "-I", "-S", "-", stdin=program(json.dumps(request_of(host, replica))))
    told = json.loads(done.stdout or '{"begin": 0, "end": 0, "errors": {"all": "no answer"}}')
    findings = judge(fleet, [Sight(host, replica, decode(told, Facts))])
    return told, [f"{each.severity}: {each.check}: {each.message}" for each in findings]


def runs(loaded: str) -> Iterator[tuple[str, str, dict, bool]]:
    """Each run of the playbook: what it is, its stages, more variables, and whether it ends well."""
    clocks = ask("nvidia-smi", "--query-supported-clocks=mem,gr", "--format=csv,noheader,nounits").stdout.splitlines()
    memory, graphics = clocks[1].replace(" ", "").split(",")
    low = str(int(float(card("power.min_limit")[0])))
    every = {"gpu_locked_clocks": int(graphics), "gpu_memory_clocks": int(memory), "gpu_power_limit": int(low)}
    every |= {"gpu_application_clocks": f"{memory},{graphics}", "gpu_compute_mode": "Exclusive_Process"}
    yield "all stages, wanting what runs", STAGES, {}, True
    yield "every setting of a card otherwise", "gpu", {**every, "gpu_ecc": False, "gpu_mig": True}, True
    yield "a clock that the card does not list", "gpu", {"gpu_locked_clocks": int(graphics) - 1}, False
    yield "application clocks in the wrong order", "gpu", {"gpu_application_clocks": f"{graphics},{memory}"}, False
    yield "another driver, no reboot allowed", "driver", {"driver_version": "580.178.04"}, False
    yield "another driver, a reboot allowed", "driver", {"driver_version": "580.178.04", "reboot_allowed": True}, True
    yield "a fabric manager", "driver", {"driver_fabric_manager": True}, True
    yield "toolkit and NCCL", "cuda", {"cuda_toolkit": True, "cuda_nccl": True}, True


def playbook(source: Path, loaded: str) -> Iterator[tuple[str, bool]]:
    """The real playbook, in check mode; its words, and whether it ended as it should."""
    own = ["ansible-playbook", "-i", str(source), "playbooks/bootstrap.yml", "--connection", "local", "--check"]
    own += ["--diff", "-v", "-e", "@provision/stack/default.lock.yml"]
    for name, stages, more, ends_well in runs(loaded):
        done = ask(*own, "--tags", stages, "-e", json.dumps(more))
        fine = done.returncode == (0 if ends_well else 2)
        print(f"· {'as expected' if fine else 'NOT as expected'}: {name} (ended with {done.returncode})")
        yield f"##### {name}: --tags {stages} -e {json.dumps(more)}\n{done.stdout}{done.stderr}\n", fine


def other_looks(count: int) -> dict:
    """The probe of `provision status`, and the module that tells where GPUs sit."""
    probe = (ROOT / "provision/serving/probe.py").read_text()
    seen = ask("python3", "-I", "-S", "-", json.dumps({"units": [], "endpoint": None}), stdin=probe)
    numa = ask("ansible", "localhost", "-c", "local", "-m", "gpu_numa", "-a", f"count={count}", "--check")
    return {"probe": json.loads(seen.stdout), "gpu_numa": numa.stdout}


def files() -> dict[str, str]:
    """What modules read of the kernel: the driver, the PCI bus, NUMA, RDMA."""
    bus = sorted(Path("/sys/bus/pci/devices").iterdir())
    found = {str(device): f"-> {os.readlink(device)}" for device in bus}
    names = [device / name for device in bus for name in READ]
    names += map(Path, ("/proc/driver/nvidia/version", "/sys/module/nvidia/version", "/sys/devices/system/node/online"))
    found |= {str(name): name.read_text() for name in names if name.is_file()}
    found |= {f"{device}/config": (device / "config").read_bytes()[:64].hex() for device in bus}
    adapters = Path("/sys/class/infiniband")
    return found | {str(adapters): " ".join(path.name for path in adapters.iterdir())} if adapters.is_dir() else found


def masks() -> list[tuple[re.Pattern[str], str]]:
    """What identifies this machine and its cards, each with what stands for it."""
    said = [line.partition(":") for line in ask("nvidia-smi", "-q").stdout.splitlines()]
    secrets = [value.strip().removeprefix("GPU-") for name, _, value in said if name.strip() in IDENTIFIES]
    secrets += [path.read_text().strip() for path in Path("/sys/class/net").glob("*/address")]
    secrets += [Path(path).read_text().strip() for path in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id")]
    secrets = [value for value in dict.fromkeys(secrets) if re.search("[1-9]", value)]
    shapes = [(value, f"{re.sub('[0-9a-fA-F]', '0', value)[:-2]}{n:02}") for n, value in enumerate(secrets, 1)]
    links = json.loads(ask("ip", "-json", "address", "show").stdout or "[]")
    own = [each["local"] for link in links for each in link["addr_info"] if link["ifname"] != "lo"]
    shapes += [(value, f"192.0.2.{n}") for n, value in enumerate(dict.fromkeys(own), 1)]
    shapes += [(socket.gethostname(), "host-1")] * (socket.gethostname() != "localhost")
    return [(re.compile(rf"(?<![\w.]){re.escape(value)}(?![\w.])", re.IGNORECASE), shape) for value, shape in shapes]


def written(since: float) -> list[str]:
    """Files that came or changed since then, where the roles write."""
    found = (Path(top, name) for place in KEPT for top, _, names in os.walk(place) for name in names)
    return [str(path) for path in found if path.suffix != ".pyc" and path.exists() and path.lstat().st_ctime > since]


def look(work: Path) -> tuple[dict[str, object], list[str]]:
    """All that was seen, by file, and what should not be."""
    since, before, loaded = time.time(), settings(), card("driver_version")[0]
    source = inventory(work, loaded)
    told, findings = preflight(load_fleet(source, asked=SETTINGS))
    played = list(playbook(source, loaded))
    seen = {"preflight.json": told, "files.json": files(), "others.json": other_looks(len(card("index")))}
    after = settings()
    queries = (work / "queries.jsonl").read_text()
    wrong = [f"preflight could not look at {name}: {why}" for name, why in told["errors"].items()]
    wrong += ["a run of the playbook did not end as it should"] * (not all(fine for _, fine in played))
    wrong += [
        f"refused: nvidia-smi {entry['argv']}" for entry in map(json.loads, queries.splitlines()) if entry["rc"] == 90
    ]
    wrong += [f"written in check mode: {path}" for path in written(since)]
    wrong += [f"a setting moved: {line}" for line in difflib.unified_diff(before, after, "before", "after", n=1)]
    texts = {"settings.txt": before, "findings.txt": findings, "wrong.txt": wrong}
    seen |= {name: "".join(f"{line}\n" for line in lines) for name, lines in texts.items()}
    return {**seen, "queries.jsonl": queries, "ansible.txt": "".join(text for text, _ in played)}, wrong


def main() -> None:
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        prepare(work)
        seen, wrong = look(work)
        masked = masks()
    for name, what in seen.items():
        text = what if isinstance(what, str) else json.dumps(what, indent=1, sort_keys=True) + "\n"
        for pattern, shape in masked:
            text = pattern.sub(shape, text)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    print(seen["findings.txt"], *(f"WRONG: {line}\n" for line in wrong), sep="", end="")
    print(
        "· " + ("something is wrong" if wrong else "all settings of the cards are as before, and no file was written")
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
