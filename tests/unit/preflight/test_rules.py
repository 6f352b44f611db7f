"""Each rule: quiet on a host that is as it should be, and what it says of one that is not."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from provision.preflight import Finding
from provision.preflight.rules import gpus, machine, network, site
from provision.preflight.rules.seen import Seen, several, size_text

See = Callable[..., Seen]
GIB = 2**30
PROCESS = {
    "pid": 71,
    "program": "python3",
    "user": "alice",
    "unit": "session-3.scope",
    "gpus": [0, 1],
    "memory_mib": 900,
}
LISTENER = {
    "port": 8000,
    "wanted_by": "vllm_port",
    "pid": 9,
    "program": "nginx",
    "user": "root",
    "unit": "nginx.service",
}
REACHED = {
    "use": "python",
    "named": "site_python_index_url",
    "url": "https://p/simple",
    "proxy": "",
    "failure": "timeout",
    "said": "no answer within 5 s",
    "bytes": 0,
}
COMMIT = {"commit": "0" * 40, "revision": "main", "files": 4, "good": 4, "bytes": 9}
RULES = [
    machine.fit, machine.clock, machine.time_sync, machine.reboot, machine.headers, machine.swap, machine.disks,
    machine.busy, gpus.driver, gpus.fabric, gpus.gpus, gpus.nvlink, gpus.topology, gpus.processes, network.addresses,
    network.names, network.ports, network.gpudirect, network.pcie, site.apt, site.upgrades, site.reach, site.listeners,
]  # fmt: skip


def worst(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    """Severity and text of all that is not as it should be."""
    return [(str(each.severity), f"{each.message} | {each.todo}") for each in findings if each.severity != "ok"]


GOOD = {"disks.swap.file_system": "ext4", "machine.headers": True, "disks.weights.kind": "nvme"}


@pytest.mark.parametrize("name", ["n1", "n3"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_sound_host(host: See, rule, name) -> None:
    assert worst(rule(host(name, GOOD))) == []


CASES = [
    # the machine
    (machine.fit, {"base.secure_boot": True, "base.driver_loaded": False}, "blocker", ["Secure Boot is on", "mokutil"]),
    (machine.fit, {"base.system.version": "11"}, "blocker", ["it runs Debian", "Reinstall"]),
    (machine.fit, {"base.free": {"/opt": GIB, "/var": 2**40}}, "blocker", ["1.0 GiB are free at /opt; 25.0 GiB"]),
    (machine.fit, {"base.nvidia.4.device": "0xffff"}, "blocker", ["hardware_profile 8xh20-96", "lspci"]),
    (machine.time_sync, {"machine.time_service": "", "machine.synchronised": False}, "warning", ["no time service", "chrony"]),
    (machine.time_sync, {"machine.synchronised": False}, "warning", ["systemd-timesyncd runs, but", "timedatectl"]),
    (machine.time_sync, {"machine.time_service": "", "machine.synchronised": None}, "warning", ["nobody keeps"]),
    (machine.reboot, {"machine.reboot_required": ["linux-image-6.1.0-41-amd64"]}, "warning", ["linux-image-6.1.0-41"]),
    (machine.headers, {"machine.headers": False, "machine.headers_offered": False}, "blocker", ["linux-headers-6.1.0-40"]),
    (machine.headers, {"machine.headers": False, "machine.headers_offered": True}, "note", ["stage driver installs"]),
    (machine.swap, {"disks.swap.file_system": "zfs"}, "blocker", ["zfs", "swap_path"]),
    (machine.swap, {**GOOD, "disks.swap.free": GIB}, "blocker", ["4.0 GiB does not fit", "swap_size"]),
    (machine.disks, {"disks.weights.kind": "rotational"}, "warning", ["rotating", "NVMe"]),
    (machine.disks, {"disks.weights.kind": "network"}, "warning", ["network file system"]),
    (machine.busy, {"busy": {"pid": 7, "command": "module x", "since": "now"}}, "note", ["process 7", "wait"]),
    # driver and GPUs
    (gpus.driver, {"nvidia.loaded": "", "packages.driver": {}, "base.nouveau": True}, "note", ["no driver", "nouveau", "580.126.20"]),
    (gpus.driver, {"nvidia.loaded": ""}, "warning", ["580.126.20 is installed, but its module is not loaded", "dkms"]),
    (gpus.driver, {"packages.driver.libcuda1.version": "580.159.04"}, "warning", ["580.159.04 is installed", "finds no GPU", "provision bootstrap"]),
    (gpus.driver, {"packages.driver.libcuda1.version": "580.159.04", "packages.last_change": "apt upgraded libcuda1"}, "warning", ["Apt upgraded libcuda1. Repair"]),
    (gpus.driver, {"nvidia.loaded": "580.95.05", "packages.driver": {"libcuda1": {"version": "580.95.05", "held": True}}}, "blocker", ["580.126.20 is wanted", "reboot_allowed: true"]),
    (gpus.driver, {"nvidia.is_open": False}, "blocker", ["runs with proprietary kernel modules, open ones are wanted", "reboot"]),
    (gpus.fabric, {"packages.driver.nvidia-fabricmanager.version": "580.126.16"}, "warning", ["580.126.16", "error 802", "nvidia-smi looks fine", "--limit n1"]),
    (gpus.fabric, {"nvidia.fabric_manager": "failed"}, "warning", ["nvidia-fabricmanager.service is failed", "802"]),
    (gpus.fabric, {"nvidia.gpus.2.fabric": "In Progress "}, "warning", ["GPU 2 In Progress", "802"]),
    (gpus.fabric, {"packages.driver": {}, "nvidia.gpus.0.fabric": "In Progress "}, "warning", ["not installed"]),
    (gpus.gpus, {"nvidia.gpus": [], "nvidia.error": "nvidia-smi ended with 15: Unknown Error. Look at x."}, "blocker", ["ended with 15", "Look at x"]),
    (gpus.gpus, {"nvidia.gpus": []}, "blocker", ["shows 0 of 8"]),
    (gpus.gpus, {"nvidia.gpus.1.memory_mib": 40000}, "warning", ["GPU 1 have 40000 MiB", "97871 MiB"]),
    (gpus.gpus, {"nvidia.gpus.1.uncorrected": 3, "nvidia.gpus.1.remap_pending": True}, "warning", ["GPU 1: 3 uncorrectable", "row waits"]),
    (gpus.gpus, {"nvidia.gpus.1.remap_failed": True}, "blocker", ["remapping", "replaced"]),
    (gpus.gpus, {"nvidia.gpus.1.mig": True}, "note", ["MIG"]),
    (gpus.gpus, {"nvidia.gpus.1.ecc": False}, "note", ["ECC is off"]),
    (gpus.nvlink, {"nvidia.links.5": {"up": 16, "down": 2}}, "warning", ["GPU 5 has 16 of 18"]),
    (gpus.topology, {"nvidia.topology.GPU0.GPU1": "SYS"}, "warning", ["GPU0-GPU1 SYS", "topo -m"]),
    (gpus.topology, {"base.nvidia.4.numa": "1"}, "note", ["3+5", "4+4"]),
    (gpus.processes, {"nvidia.processes": [PROCESS]}, "warning", ["process 71 (python3; user alice, session-3.scope) uses GPU 0, 1, 900 MiB"]),
    # ways between hosts
    (network.addresses, {"net.interfaces": []}, "blocker", ["ray_address 10.0.0.1 is on none"]),
    (network.names, {"net.resolves_itself": False}, "warning", ["/etc/hosts"]),
    (network.names, {"reach": [{**REACHED, "failure": "dns"}]}, "blocker", ["does not resolve p (name servers: 10.0.0.53)"]),
    (network.ports, {"rdma.ports.1.state": "DOWN", "rdma.ports.1.physical": "Polling"}, "warning", ["mlx5_1 is down (Polling; InfiniBand", "ibstat mlx5_1"]),
    (network.ports, {"rdma.ports.1.state": "INIT"}, "warning", ["subnet manager"]),
    (network.ports, {"rdma.ports.1.rate": 200.0}, "warning", ["mlx5_1 runs at 200 Gb/s", "400"]),
    (network.ports, {"rdma.ports": []}, "warning", ["0 ports of InfiniBand", "8 for computing"]),
    (network.gpudirect, {"nvidia.is_open": False}, "warning", ["GPUDirect RDMA is off", "proprietary", "modprobe nvidia_peermem"]),
    (network.gpudirect, {"rdma.dma_buf_kernel": False}, "warning", ["older than 5.12"]),
    (network.pcie, {"pci.acs_redirect": ["0000:01:00.0"]}, "warning", ["ACS", "setpci"]),
    (network.pcie, {"pci.iommu": ["DMA-FQ"]}, "warning", ["iommu=pt"]),
    # the site
    (site.apt, {"packages.lock_holder": "apt-get (process 5)"}, "warning", ["apt-get (process 5) holds its lock"]),
    (site.apt, {"packages.interrupted": True, "packages.broken": ["vim"]}, "note", ["interrupted: vim"]),
    (site.upgrades, {"packages.unattended": True, "packages.not_excluded": ["libcuda1"]}, "warning", ["libcuda1", "held"]),
    (site.reach, {"reach": [REACHED]}, "blocker", ["https://p/simple (site_python_index_url): no answer", "site_https_proxy"]),
    (site.reach, {"reach": [{**REACHED, "proxy": "http://q:1"}]}, "blocker", ["through http://q:1", "site_no_proxy"]),
    (site.reach, {"reach": [{**REACHED, "use": "weights", "failure": "http 401"}]}, "blocker", ["weights_token"]),
    (site.reach, {"reach": [{**REACHED, "failure": "certificate"}]}, "blocker", ["site_ca_certificates"]),
    (site.reach, {"reach.3.failure": "http 404", "reach.3.said": "it answers 404"}, "blocker", ["mirror.example"]),
    (site.listeners, {"ports": [LISTENER]}, "blocker", ["port 8000 (vllm_port) is taken by process 9 (nginx, nginx.service)"]),
    (site.listeners, {"ports": [{**LISTENER, "wanted_by": "ray_ports.workers"}]}, "warning", ["range"]),
    (site.weights, {}, "note", ["lab/tiny is not there", "4 MiB"]),
    (site.weights, {"disks.weights.free": 10**6}, "blocker", ["needs 1.0 GiB; 1 MiB are free", "weights_dir"]),
    (site.weights, {"weights.partial": 2**20}, "note", ["1 MiB of it begun", "3 MiB"]),
    (site.weights, {"weights.commits": [{**COMMIT, "good": 3}]}, "note", ["3 of 4 files"]),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "changes", "severity", "words"), CASES)
def test_what_is_wrong(host: See, rule, changes, severity, words) -> None:
    found = worst(rule(host("n1", changes)))
    assert [how for how, _ in found] == [severity], found
    for word in words:
        assert word in found[0][1]


def test_our_own_processes_and_ports_are_no_finding(host: See) -> None:
    ours = {"nvidia.processes": [{**PROCESS, "unit": "ray-worker.service"}, {**PROCESS, "program": "nvidia-persiste"}]}
    assert worst(gpus.processes(host("n1", ours))) == []
    assert worst(site.listeners(host("n1", {"ports": [{**LISTENER, "unit": "vllm.service"}]}))) == []


def test_one_cause_is_told_once(host: See) -> None:
    upgraded = {
        "packages.driver.libcuda1.version": "580.159.04",
        "nvidia.gpus": [],
        "nvidia.error": "nvidia-smi ended with 18: Driver/library version mismatch. Look.",
    }
    assert worst(gpus.gpus(host("n1", upgraded))) == []
    dark = {"nvidia.fabric_manager": "inactive", "nvidia.links": [{"up": 0, "down": 18}] * 8}
    assert worst(gpus.nvlink(host("n1", dark))) == []


def test_adapters_matter_less_where_no_peer_is(host: See) -> None:
    assert [how for how, _ in worst(network.ports(host("n3", {"rdma.ports.0.state": "DOWN"})))] == ["note"]
    assert [how for how, _ in worst(network.gpudirect(host("n3", {"nvidia.is_open": False})))] == ["note"]


def test_peermem_is_a_way_too(host: See) -> None:
    assert worst(network.gpudirect(host("n1", {"nvidia.is_open": False, "rdma.peermem": True}))) == []


def test_a_reboot_that_is_allowed_is_only_a_note(host: See, make_fleet) -> None:
    allowed = make_fleet("reboot_allowed: true\n")
    other = {"nvidia.loaded": "580.95.05", "packages.driver": {"libcuda1": {"version": "580.95.05", "held": True}}}
    assert [how for how, _ in worst(gpus.driver(host("n1", other, of=allowed)))] == ["note"]


def test_interfaces_that_do_not_fit(host: See, make_fleet) -> None:
    named = make_fleet("ray_interface: bond0\n")
    assert "ray_interface bond0 does not exist" in worst(network.addresses(host("n1", of=named)))[0][1]
    bond = {"net.interfaces+": {"name": "bond0", "mtu": 9000, "up": True, "addresses": ["10.9.0.1"]}}
    assert "ray_address 10.0.0.1 is on host0" in worst(network.addresses(host("n1", bond, of=named)))[0][1]
    assert list(network.addresses(host("n3", of=named))) == []  # nobody looks for it


@pytest.mark.parametrize(
    ("ahead", "severity"),
    [((-0.2, 0.4), []), ((100.0, 101.0), []), ((890.0, 910.0), ["blocker"]), ((-910.0, -890.0), ["blocker"])],
)
def test_a_clock_is_wrong_only_where_that_is_certain(host: See, ahead, severity) -> None:
    assert [how for how, _ in worst(machine.clock(host("n1", ahead=ahead)))] == severity


def test_an_extra_source_that_is_gone_is_a_warning(host: See) -> None:
    more = {"reach+": {**REACHED, "use": "apt", "named": "apt (own.list)"}}
    assert [how for how, _ in worst(site.reach(host("n1", more)))] == ["warning"]


def test_a_hub_is_not_missed_where_the_model_is_there(host: See) -> None:
    whole = {"weights.commits": [COMMIT], "reach.2.failure": "timeout", "reach.2.said": "no answer within 5 s"}
    seen = host("n1", whole)
    assert seen.facts.reach[2].use == "weights"
    assert [how for how, _ in worst(site.reach(seen))] == ["note"]
    assert worst(site.weights(seen)) == []


def test_a_bare_host(host: See) -> None:
    bare = host("n1", GOOD, told="bare")
    found = [each for rule in [*RULES, site.weights] for each in worst(rule(bare))]
    assert [how for how, _ in found] == ["note", "note"]  # the driver, the weights


def test_real_hosts_as_recorded(host: See) -> None:
    two = host("n4")
    assert [each.message for each in gpus.gpus(two)] == ["nvidia-smi shows 2 of 8 GPUs."]
    assert [str(each.severity) for each in gpus.fabric(two)] == ["ok"]  # a virtual machine: joined from outside
    assert [each.message for each in gpus.nvlink(two)] == ["18 of 18 up on each GPU"]
    assert [each.message for each in gpus.topology(two)] == ["GPUs are joined by NV18"]
    said = " ".join(text for _, text in worst(machine.fit(two)))
    assert "8 GPUs 0x2335 (NVIDIA H200); the PCI bus shows 2 GPUs 0x2335 (NVIDIA H200)" in said
    assert "has 4 NVSwitches; 0 are on the PCI bus" in said
    one = host("n4", told="h100x1")
    assert "0x2330 (of no known profile)" in " ".join(text for _, text in worst(machine.fit(one)))


def test_sizes_and_names() -> None:
    assert [size_text(size) for size in (5 * 2**20, 3 * GIB, 2.5 * 2**40)] == ["5 MiB", "3.0 GiB", "2.5 TiB"]
    assert several(["a", "b", "c"], 2) == "a, b and 1 more"
