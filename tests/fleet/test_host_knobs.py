"""Every knob of the stages host and swap, on four hosts of two kinds: bare, set, left alone, changed by hand, repaired alone, kept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from rehearsal import Run, Site

HOSTS = {"node-1": "8xh20-96", "node-2": "4xa100-80", "node-3": "8xh20-96", "node-4": "4xa100-80"}
STAGES = ("--stage", "site,host,swap")
SWAP = "/data/swapfile"
SERVING = f"""
lab: true
weights_repo: provision-lab/tiny-deepseek-v3
serving_env_build: cpu
vllm_tensor_parallel_size: 1
host_hugepages: {{2M: 8}}
host_kernel_parameters: [hugepagesz=1G, hugepages=2]
host_ntp_servers: [192.0.2.1]
swap_path: {SWAP}
swap_size: 64M
"""


@dataclass
class Knob:
    """How it is read, what it shall be, how somebody breaks it, and what drift names then."""

    read: str
    wanted: str
    break_it: str
    names: list[str]


def sysctl(name: str, wanted: str, by_hand: str) -> Knob:
    return Knob(f"sysctl -n {name} | tr '\\t' ' '", wanted, f"sysctl -qw {name}='{by_hand}'", [name])


def sysfs(path: str, wanted: str, by_hand: str, read: str = "cat {}") -> Knob:
    return Knob(read.format(path), wanted, f"echo {by_hand} > {path}", [path])


def service(unit: str) -> Knob:
    return Knob(f"systemctl is-active {unit}", "active", f"systemctl stop {unit}", [unit])


THP, IN_BRACKETS = "/sys/kernel/mm/transparent_hugepage", "sed 's/.*\\[//; s/\\].*//' {}"
CPU = "/sys/devices/system/cpu/cpufreq"
LIMITS, GRUB, TIME = (
    "/etc/security/limits.d/90-provision.conf",
    "/etc/default/grub.d/90-provision.cfg",
    "/etc/chrony/sources.d/90-provision.sources",
)
KNOBS = {
    "swappiness": sysctl("vm.swappiness", "1", "60"),
    "overcommit": sysctl("vm.overcommit_memory", "0", "2"),
    "numa balancing": sysctl("kernel.numa_balancing", "0", "1"),
    "somaxconn": sysctl("net.core.somaxconn", "4096", "128"),
    "socket buffers": sysctl("net.core.rmem_max", "67108864", "212992"),
    "tcp windows": sysctl("net.ipv4.tcp_rmem", "4096 131072 67108864", "4096 131072 6291456"),
    "huge pages of programs": sysfs(f"{THP}/enabled", "madvise", "always", IN_BRACKETS),
    "waiting for huge pages": sysfs(f"{THP}/defrag", "madvise", "always", IN_BRACKETS),
    "huge pages set aside": sysfs("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8", "0"),
    "governor": Knob(
        f"cat {CPU}/policy*/scaling_governor | sort -u",
        "performance",
        f"echo powersave > {CPU}/policy1/scaling_governor",
        [CPU],
    ),
    "limits": Knob(
        f"grep -c -e '^. - nofile 1048576' -e '^. - memlock unlimited' {LIMITS}",  # the machine lets no host raise them
        "2",
        f"sed -i s/1048576/1024/ {LIMITS}",
        [LIMITS],
    ),
    "kernel parameters": Knob(
        "grep -c 'hugepagesz=1G hugepages=2' /boot/grub/grub.cfg",
        "2",
        f"sed -i s/=2/=4/ {GRUB}",
        [GRUB, "/boot/grub/grub.cfg"],
    ),
    "interrupts": service("irqbalance.service"),
    "the clock": service("chrony.service"),
    "time servers": Knob(f"grep server {TIME}", "server 192.0.2.1 iburst", f"echo > {TIME}", [TIME, "chrony.service"]),
    "swap": Knob("swapon --show=NAME --noheadings", SWAP, f"swapoff {SWAP}", ["/proc/swaps"]),
    "swap at boot": Knob(f"grep -c '^{SWAP} ' /etc/fstab", "1", "sed -i /swapfile/d /etc/fstab", ["/etc/fstab"]),
}
# What a bare host has as it should be already: the kernel's own defaults, held all the same.
ALREADY = {"overcommit", "somaxconn", "waiting for huge pages"}


def values(site: Site, host: str) -> dict[str, str]:
    """All knobs of a host as programs of the system show them, in one login."""
    script = "".join(f"echo '== {name}'; ({knob.read}) 2>/dev/null\n" for name, knob in KNOBS.items())
    parts = re.split(r"^== (.*)\n", site.sh(host, script, check=False), flags=re.MULTILINE)[1:]
    return {name: text.strip() for name, text in zip(parts[::2], parts[1::2], strict=True)}


def drifted(site: Site) -> dict[str, list[str]]:
    """What drift names, by host."""
    run = site.run("drift", site.directory, "--json", code=None)
    assert run.code in (0, 2), str(run)
    return {
        host["name"]: [finding["resource"] for stage in host["stages"] for finding in stage["findings"]]
        for host in json.loads(run.out)["hosts"]
    }


def asked(site: Site, code: int = 0, **variables: object) -> Run:
    """Bootstrap node-1 with other variables for swap than the group's."""
    site.variables("host_vars/node-1.yml", "".join(f"{name}: {value}\n" for name, value in variables.items()))
    return site.bootstrap(*STAGES, "--limit", "node-1", code=code)


@pytest.fixture(scope="module")
def bare(make_site: Callable[[str], Site]) -> Site:
    """Two hosts each of different hardware, as they were delivered."""
    site = make_site("knobs")
    for path in (site.directory / "host_vars").iterdir():
        path.unlink()
    replicas = {f"replica_{host[5:]}": {"hosts": {host: {"hardware_profile": HOSTS[host]}}} for host in HOSTS}
    site.variables("hosts.yml", json.dumps({"serving": {"children": replicas}}))
    site.variables("group_vars/serving.yml", SERVING)
    site.up()
    return site


@pytest.fixture(scope="module")
def first(bare: Site) -> tuple[dict[str, dict[str, str]], Run, Run]:
    """The knobs of the bare hosts, what a check foretold, and the first run."""
    before = {host: values(bare, host) for host in HOSTS}
    return before, bare.bootstrap("--check", *STAGES, code=2), bare.bootstrap(*STAGES)


@pytest.fixture
def at_rest(bare: Site, first: object) -> Iterator[Site]:
    """The hosts with all knobs set, before and after a test."""
    yield bare
    assert drifted(bare) == {host: [] for host in HOSTS}


def test_bare_hosts_are_set_as_foretold(bare: Site, first: tuple[dict[str, dict[str, str]], Run, Run]) -> None:
    before, check, run = first
    assert check.changes() == run.changes()
    for host in HOSTS:
        right = {name for name, knob in KNOBS.items() if before[host][name] == knob.wanted}
        assert right <= ALREADY
        assert values(bare, host) == {name: knob.wanted for name, knob in KNOBS.items()}


def test_a_second_run_changes_nothing(at_rest: Site) -> None:
    assert at_rest.bootstrap(*STAGES, "--full").changes() == {}


TURNS = [list(KNOBS)[turn : turn + len(HOSTS)] for turn in range(0, len(KNOBS), len(HOSTS))]


@pytest.mark.parametrize("turn", TURNS, ids=", ".join)
def test_what_is_changed_by_hand_is_named_and_repaired_alone(at_rest: Site, turn: list[str]) -> None:
    """One knob on each host, to save time."""
    broken = dict(zip(HOSTS, turn, strict=False))
    for host, name in broken.items():
        at_rest.sh(host, KNOBS[name].break_it)
    named = {host: KNOBS[name].names for host, name in broken.items()}
    assert drifted(at_rest) == {host: named.get(host, []) for host in HOSTS}
    done = {host: len(lines) for host, lines in at_rest.bootstrap(*STAGES).changes().items()}
    assert done == {host: len(names) for host, names in named.items()}
    for host, name in broken.items():
        assert values(at_rest, host)[name] == KNOBS[name].wanted


def test_all_is_as_it_was_after_a_reboot(at_rest: Site) -> None:
    for host in HOSTS:
        at_rest.run("lab", "reboot", at_rest.directory, host)
    for host in HOSTS:
        assert values(at_rest, host) == {name: knob.wanted for name, knob in KNOBS.items()}
        assert "hugepagesz=1G hugepages=2" in at_rest.sh(host, "cat /proc/cmdline")
        assert at_rest.sh(host, "cat /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages") == "2\n"
    assert at_rest.bootstrap(*STAGES).changes() == {}


def test_swap_is_grown_shrunk_moved_refused_and_removed(at_rest: Site) -> None:
    size = f"stat -c %s {SWAP}; swapon --show=NAME --noheadings"
    for mib in (128, 32):
        sentences = asked(at_rest, swap_size=f"{mib}M").changes()["node-1"]
        assert [line.split(" of ")[0] for line in sentences] == [
            f"swap: Made the swap file {SWAP}",
            f"swap: Turned off swap on {SWAP}.",
            f"swap: Turned on swap on {SWAP}.",
        ]
        assert at_rest.sh("node-1", size) == f"{mib * 2**20}\n{SWAP}\n"
        assert asked(at_rest, swap_size=f"{mib}M").changes() == {}
    refused = asked(at_rest, code=1, swap_path="/swapfile").text
    assert "/swapfile would lie on overlay" in refused
    refused = asked(at_rest, code=1, swap_size="2T").text
    assert "does not fit at /data/swapfile" in refused
    assert at_rest.sh("node-1", size) == f"{32 * 2**20}\n{SWAP}\n"
    asked(at_rest, swap_path="/data/elsewhere/swap")
    after = at_rest.sh("node-1", "swapon --show=NAME --noheadings; ls -A /data; grep swap /etc/fstab")
    assert after == "/data/elsewhere/swap\nelsewhere\n/data/elsewhere/swap none swap sw,nofail,x-provision 0 0\n"
    asked(at_rest, swap_mode="none", swap_path="/data/elsewhere/swap")
    assert at_rest.sh("node-1", "swapon --show; ls -A /data/elsewhere; grep swap /etc/fstab", check=False) == ""
    assert at_rest.sh("node-2", "swapon --show=NAME --noheadings") == f"{SWAP}\n"
