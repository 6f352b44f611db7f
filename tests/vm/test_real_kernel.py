"""What only a kernel of its own can show: that it takes what is set, keeps it over a reboot, and moves bytes by RDMA."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import NAMES, VARIABLES, Real
from rehearsal import Run

from provision.content import content_root
from provision.converge.environment import environment

THP = "/sys/kernel/mm/transparent_hugepage/enabled"
KERNEL = {
    "sysctl -n vm.swappiness vm.max_map_count kernel.numa_balancing": "1 1048576 0",
    "sysctl -n net.core.rmem_max net.ipv4.tcp_rmem": "67108864 4096 131072 67108864",
    f"sed 's/.*\\[//; s/\\].*//' {THP}": "madvise",
    "grep -o 'HugePages_Total: *[0-9]*' /proc/meminfo | tr -s ' '": "HugePages_Total: 24",
    "swapon --show=NAME,TYPE,SIZE --noheadings": "/swapfile file 64M",
    "findmnt -n -o FSTYPE --target /swapfile": "ext4",
    "systemctl is-active chrony irqbalance": "active active",
}


def kernel(real: Real, host: str) -> dict[str, str]:
    return {script: " ".join(real.sh(host, script).split()) for script in KERNEL}


def boot_id(real: Real, host: str) -> str:
    return real.sh(host, "cat /proc/sys/kernel/random/boot_id")


def fabric(real: Real, host: str) -> dict[str, str]:
    lines = real.sh(host, "cat /etc/provision/fabric.env").splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    return {name: json.loads(value) for name, value in pairs}


def test_the_kernel_takes_what_is_set(real: Real, first: tuple[Run, Run]) -> None:
    check, run = first
    assert check.changes() == run.changes()
    assert set(run.changes()) == set(NAMES)
    for host in NAMES:
        assert kernel(real, host) == KERNEL


def test_a_second_run_changes_nothing(real: Real, first: tuple[Run, Run]) -> None:
    assert real.bootstrap("--full").changes() == {}


def test_limits_are_those_of_a_login_and_of_a_unit_that_runs(real: Real, first: tuple[Run, Run]) -> None:
    for host in NAMES:
        assert real.machines.sh(host, "ulimit -n; ulimit -l", root=False).split() == ["1048576", "unlimited"]
        unit = "systemd-run --quiet --pipe --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576"
        assert real.sh(host, f"{unit} sh -c 'ulimit -n; ulimit -l'").split() == ["1048576", "unlimited"]


def test_what_is_changed_by_hand_is_named_and_repaired_alone(real: Real, first: tuple[Run, Run]) -> None:
    real.sh("vm-1", f"sysctl -qw vm.swappiness=60; echo always > {THP}; swapoff /swapfile")
    run = real.site.run("drift", real.site.directory, "--json", code=2)
    named = {
        host["name"]: {finding["resource"] for stage in host["stages"] for finding in stage["findings"]}
        for host in json.loads(run.out)["hosts"]
    }
    assert named["vm-1"] == {"vm.swappiness", THP, "/proc/swaps"}
    assert named["vm-2"] == set()
    done = real.bootstrap().changes()
    assert {host: len(sentences) for host, sentences in done.items()} == {"vm-1": 3}
    assert kernel(real, "vm-1") == KERNEL


def test_swap_on_a_real_disk_is_grown_and_shrunk(real: Real, first: tuple[Run, Run]) -> None:
    for size in ("128M", "32M", "64M"):
        real.write(swap_size=size)
        assert set(real.bootstrap().changes()) == set(NAMES)
        assert real.sh("vm-2", "swapon --show=NAME,SIZE --noheadings").split() == ["/swapfile", size]
        assert real.bootstrap().changes() == {}


def test_a_reboot_is_decided_by_what_runs_and_done_once(real: Real, first: tuple[Run, Run], tmp_path: Path) -> None:
    """The kernel was started without the parameters that are wanted. The role asks what runs, not what a run changed."""
    playbook = tmp_path / "reboot.yml"
    asked = {"__reboot_kernel_parameters": "{{ host_kernel_parameters }}", "__reboot_packages": True}
    tasks = [{"ansible.builtin.include_role": {"name": "reboot"}, "vars": asked}]
    playbook.write_text(yaml.safe_dump([{"hosts": "all", "become": True, "gather_facts": False, "tasks": tasks}]))

    def play() -> str:
        words = [real.site.command.with_name("ansible-playbook"), "-i", real.site.directory, "-v", playbook]
        env = os.environ | environment(content_root())
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
        return " ".join(done.stdout.split())

    before = {host: boot_id(real, host) for host in NAMES}
    assert "hugepages=16" not in real.sh("vm-1", "cat /proc/cmdline")
    asked_for = " ".join(VARIABLES["host_kernel_parameters"])
    assert play().count(f"Rebooted: the kernel was started without {asked_for}.") == len(NAMES)
    for host in NAMES:
        real.machines.wait_for(host)
        assert boot_id(real, host) != before[host]
        assert asked_for in real.sh(host, "cat /proc/cmdline")
    after = {host: boot_id(real, host) for host in NAMES}
    play()
    real.sh("vm-2", "touch /run/reboot-required; echo linux-image-amd64 > /run/reboot-required.pkgs")
    assert "linux-image-amd64" in play()
    real.machines.wait_for("vm-2")
    assert boot_id(real, "vm-1") == after["vm-1"]
    assert boot_id(real, "vm-2") != after["vm-2"]


def test_all_is_as_it_was_after_the_reboots(real: Real, first: tuple[Run, Run]) -> None:
    """Also what the kernel's own parameter asks otherwise: it starts without transparent huge pages, and with fewer pages."""
    for host in NAMES:
        assert "transparent_hugepage=never" in real.sh(host, "cat /proc/cmdline")
        assert kernel(real, host) == KERNEL
    assert real.bootstrap().changes() == {}
    assert real.bootstrap("--full").changes() == {}


def test_the_network_is_described_as_the_kernel_shows_it(real: Real, first: tuple[Run, Run]) -> None:
    for host in NAMES:
        found = fabric(real, host)
        index = found["NCCL_IB_GID_INDEX"]
        gids = "/sys/class/infiniband/rxe0/ports/1"
        kind = real.sh(host, f"cat {gids}/gid_attrs/types/{index}; cat {gids}/gids/{index}").splitlines()
        assert kind[0] == "RoCE v2"
        assert kind[1].startswith("0000:0000:0000:0000:0000:ffff:")
        card = real.sh(host, "ip -o route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/'")
        assert found == {
            "NCCL_SOCKET_IFNAME": f"={card}",
            "GLOO_SOCKET_IFNAME": card,
            "NCCL_NET": "IB",
            "NCCL_IB_HCA": "=rxe0:1",
            "NCCL_IB_GID_INDEX": index,
            "UCX_IB_GID_INDEX": index,
            "UCX_NET_DEVICES": "rxe0:1",
        }


def test_bytes_go_by_rdma_through_that_description(real: Real, first: tuple[Run, Run]) -> None:
    """ib_write_bw with the device and the GID that the file names, from the second machine to the first."""
    said = {}
    for host in NAMES:
        found = fabric(real, host)
        device, _, port = found["NCCL_IB_HCA"].removeprefix("=").partition(":")
        said[host] = f"ib_write_bw -d {device} -i {port} -x {found['NCCL_IB_GID_INDEX']} -s 65536 -n 200 -F"
    unit = f"systemd-run --quiet --unit=bw-server --property=LimitMEMLOCK=infinity {said['vm-1']}"
    real.sh("vm-1", f"systemctl reset-failed bw-server 2>/dev/null; {unit}; sleep 3")
    out = real.sh("vm-2", f"{said['vm-2']} {real.machines.all['vm-1'].address}")
    row = re.search(r"^\s*65536\s+200\s+(\S+)\s+(\S+)", out, re.MULTILINE)
    assert row, out
    assert float(row[2]) > 0, out


@pytest.mark.parametrize("host", NAMES)
def test_a_sysctl_that_this_kernel_lacks_is_refused(real: Real, first: tuple[Run, Run], host: str) -> None:
    real.write(host_extra_sysctls={"vm.no_such_thing": 1})
    try:
        run = real.bootstrap("--limit", host, code=1)
        assert "vm.no_such_thing" in run.text
        assert kernel(real, host) == KERNEL
    finally:
        real.write()
