"""The network between GPUs, on a host with InfiniBand and on one without: set, kept, named when changed, repaired alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rehearsal import Run, Site, wait_until
from snapshot import difference, snapshot

STAGES = "host,driver,gpu,rdma"
HOSTS = """\
serving:
  children:
    ib_a:
      hosts:
        node-1:
    eth_a:
      hosts:
        node-2:
"""
IB = "rdma_gpudirect: peermem\nrdma_max_read_request: 4096\nrdma_env: { NCCL_IB_TC: 106 }\n"
EIGHT = ",".join(f"mlx5_{number}:1" for number in range(8))
FABRIC = "/etc/provision/fabric.env"
# How each thing is changed by hand on node-1, and what drift names.
BROKEN = {
    FABRIC: f"sed -i s/mlx5_3:1,// {FABRIC}",
    "module nvidia_peermem": "rmmod nvidia_peermem",
    "/etc/modules-load.d/provision-rdma.conf": "rm /etc/modules-load.d/provision-rdma.conf",
    "/etc/provision/rdma-ports.sh": "echo exit 0 > /etc/provision/rdma-ports.sh",
    "read requests of 0000:2b:00.0": "setpci -s 0000:2b:00.0 CAP_EXP+8.w=2000:7000",
    "provision-rdma.service": "systemctl disable --quiet provision-rdma.service",
}


def of_rdma(run: Run) -> dict[str, list[str]]:
    """What this stage changed, or would, by host."""
    changes = run.changes().items()
    return {host: [sentence for sentence in own if sentence.startswith("rdma: ")] for host, own in changes}


class Fabric:
    """The site, and what its hosts show."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def bootstrap(self, *options: str, code: int = 0) -> Run:
        return self.site.bootstrap("--stage", STAGES, *options, code=code)

    def environment(self, host: str) -> dict[str, str]:
        lines = self.site.sh(host, f"cat {FABRIC}").splitlines()
        pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
        return {name: json.loads(value) for name, value in pairs}

    def named(self) -> dict[str, set[str]]:
        """What drift names in these stages, by host; the others were never asked for."""
        hosts = json.loads(self.site.run("drift", self.site.directory, "--json", code=2).out)["hosts"]
        return {
            host["name"]: {
                word
                for stage in host["stages"]
                for word in (*(found["resource"] for found in stage["findings"]), *stage["facts"], stage["error"])
                if word
            }
            for host in hosts
        }

    def shown(self) -> str:
        """Read requests, modules, and whether the unit starts at boot, on the host with InfiniBand."""
        script = (
            "setpci -s 0000:2b:00.0 CAP_EXP+8.w; lsmod | grep -o ^nvidia_peermem; systemctl is-enabled provision-rdma"
        )
        return self.site.sh("node-1", script, check=False)


@pytest.fixture(scope="module")
def fabric(make_site: Callable[[str], Site]) -> Fabric:
    site = make_site("fabric")
    site.variables("hosts.yml", HOSTS)
    serving = site.directory / "group_vars/serving.yml"
    kept = [
        line for line in serving.read_text().splitlines() if not line.startswith("vllm_") and not line.startswith("  ")
    ]
    less = "host_packages: [ca-certificates, pciutils]"  # no compiler is needed here, and it takes longest to unpack
    serving.write_text("\n".join([*kept, "vllm_tensor_parallel_size: 1", less, ""]))
    site.variables("host_vars/node-1.yml", "hardware_profile: 8xh800-80\n" + IB)
    site.variables("host_vars/node-2.yml", "hardware_profile: 8xh20-141-ethernet\n")
    site.up()
    return Fabric(site)


@pytest.fixture(scope="module")
def first(fabric: Fabric) -> Run:
    predicted = of_rdma(fabric.bootstrap("--check", code=2))
    run = fabric.bootstrap()
    assert predicted == of_rdma(run)
    return run


def test_each_host_is_described_as_it_is(fabric: Fabric, first: Run) -> None:
    assert fabric.environment("node-1") == {
        "NCCL_SOCKET_IFNAME": "=host0",
        "GLOO_SOCKET_IFNAME": "host0",
        "NCCL_IB_HCA": f"={EIGHT}",
        "UCX_NET_DEVICES": EIGHT,
        "NCCL_IB_TC": "106",
    }
    assert fabric.environment("node-2") == {
        "NCCL_SOCKET_IFNAME": "=host0",
        "GLOO_SOCKET_IFNAME": "host0",
        "NCCL_IB_DISABLE": "1",
        "UCX_NET_DEVICES": "host0",
    }
    assert fabric.shown().split() == ["5930", "nvidia_peermem", "enabled"]


def test_what_was_seen_is_in_the_receipt(fabric: Fabric, first: Run) -> None:
    receipt = json.loads(fabric.site.sh("node-1", "cat /var/lib/provision/receipts/rdma.json"))
    (facts,) = (step["facts"] for step in receipt["steps"] if step["module"] == "rdma_ports")
    assert [facts["near"][str(gpu)][0] for gpu in range(8)] == [f"mlx5_{gpu}:1 PIX" for gpu in range(8)]
    assert facts["ports"]["mlx5_0:1"]["state"] == "ACTIVE"
    assert facts["ports"]["mlx5_8:1"]["why"] == "it is RoCE, and the GPUs have InfiniBand"
    assert facts["gpudirect"] == "peermem"


def test_the_programs_of_rdma_see_the_ports(fabric: Fabric, first: Run) -> None:
    assert fabric.site.sh("node-1", "ibstat --list_of_cas").split() == [f"mlx5_{number}" for number in range(9)]
    assert fabric.site.sh("node-1", "lspci -d 15b3: | wc -l; lspci -d 10de: | wc -l").split() == ["9", "12"]
    assert fabric.site.sh("node-1", "readlink -f /sys/class/infiniband/mlx5_0/device").strip() == (
        "/sys/devices/pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:19:00.0"
    )


def test_a_second_run_changes_nothing(fabric: Fabric, first: Run) -> None:
    before = snapshot(fabric.site, "node-1")
    assert fabric.bootstrap("--full").changes() == {}
    assert difference(before, snapshot(fabric.site, "node-1")) == {}
    assert fabric.named() == {"node-1": set(), "node-2": set()}


def test_what_is_changed_by_hand_is_named_and_repaired_alone(fabric: Fabric, first: Run) -> None:
    before, shown = snapshot(fabric.site, "node-1"), fabric.shown()
    fabric.site.sh("node-1", "; ".join(BROKEN.values()))
    assert fabric.named() == {"node-1": set(BROKEN), "node-2": set()}
    run = fabric.bootstrap()
    assert set(run.changes()) == {"node-1"}
    assert {sentence.partition(":")[0] for sentence in run.changes()["node-1"]} == {"rdma"}
    assert len(run.changes()["node-1"]) == len(BROKEN)
    assert difference(before, snapshot(fabric.site, "node-1")) == {}
    assert fabric.shown() == shown


def test_it_is_still_so_after_a_reboot(fabric: Fabric, first: Run) -> None:
    shown = fabric.shown()
    fabric.site.run("lab", "reboot", fabric.site.directory, "node-1")
    wait_until("the settings of the ports", lambda: fabric.shown() == shown, seconds=60)
    assert fabric.named() == {"node-1": set(), "node-2": set()}


def test_a_link_that_goes_down_is_said_and_changes_nothing(fabric: Fabric, first: Run) -> None:
    site: Site = fabric.site
    before = fabric.environment("node-1")
    site.break_("node-1", "ib-link-down")
    site.variables("host_vars/node-1.yml", "hardware_profile: 8xh800-80\nrdma_down_ports: fail\n" + IB)
    failed = fabric.bootstrap(code=1)
    assert "mlx5_1:1 (InfiniBand, nearest to GPU 1) is DOWN" in failed.text
    assert "rdma_exclude: [mlx5_1:1]" in failed.text
    site.mend("node-1", "ib-link-down")
    assert fabric.bootstrap().changes() == {}
    assert fabric.environment("node-1") == before


def test_a_variable_that_nccl_does_not_have_is_refused(fabric: Fabric, first: Run, tmp_path: Path) -> None:
    file = fabric.site.directory / "host_vars/node-2.yml"
    kept = file.read_text()
    file.write_text(kept + "rdma_env: { NCCL_IB_HCAS: mlx5_0 }\n")
    refused = fabric.bootstrap(code=65)
    file.write_text(kept)
    assert "node-2.yml:2" in refused.text
    assert "Did you mean NCCL_IB_HCA?" in refused.text
