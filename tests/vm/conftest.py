"""Two virtual machines with a Soft-RoCE port each, and an inventory of them as of any real hosts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from rehearsal import Run, Site
from virtual import Virtuals, virtuals

from provision.lab import login, machine

NAMES = ("vm-1", "vm-2")
STAGES = ("--stage", "site,host,swap,rdma")
# The port, as hardware would bring it: at each boot, before anything looks for it. perftest is what an operator measures with.
ROCE = """\
set -e
card=$(ip -o route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/')
cat > /etc/systemd/system/soft-roce.service <<END
[Unit]
Wants=sys-subsystem-net-devices-$card.device
After=sys-subsystem-net-devices-$card.device systemd-networkd.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'modprobe rdma_rxe && rdma link add rxe0 type rxe netdev $card'
[Install]
WantedBy=multi-user.target
END
systemctl enable --now soft-roce.service
apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends perftest >/dev/null
"""
VARIABLES = {
    "hardware_profile": "8xh800-80",
    "weights_repo": "deepseek-ai/DeepSeek-R1-0528",
    "vllm_tensor_parallel_size": 8,
    "vllm_pipeline_parallel_size": 2,
    "host_packages": ["ca-certificates", "numactl", "pciutils"],  # no compiler: minutes less under emulation
    "host_kernel_parameters": ["transparent_hugepage=never", "hugepagesz=2M", "hugepages=16"],
    "host_transparent_hugepages": "madvise",
    "host_hugepages": {"2M": 24},
    "rdma_gpudirect": "none",  # there are no GPUs here
    "swap_size": "64M",
    "reboot_allowed": True,
}


@dataclass
class Real:
    """The machines, and the inventory that describes them."""

    machines: Virtuals
    site: Site

    def bootstrap(self, *options: str, code: int = 0) -> Run:
        return self.site.bootstrap(*STAGES, *options, code=code)

    def sh(self, host: str, script: str) -> str:
        return self.machines.sh(host, script)

    def write(self, **more: object) -> None:
        self.site.variables("group_vars/serving.yml", yaml.safe_dump(VARIABLES | more))


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    work = tmp_path_factory.mktemp("vm")
    with virtuals(work, NAMES) as machines:
        for name in NAMES:
            machines.sh(name, ROCE)
        made = Real(machines, Site(Path(sys.executable).parent / "provision", work / "inventory", work / "state"))
        hosts = {name: {"ansible_host": machines.all[name].address} for name in NAMES}
        made.site.variables("hosts.yml", yaml.safe_dump({"serving": {"children": {"r1_a": {"hosts": hosts}}}}))
        access = {
            "ansible_user": login.USER,
            "ansible_ssh_private_key_file": str(work / login.KEY),
            "ansible_ssh_common_args": shlex.join(login.ssh_arguments(work)),
            "site_ca_certificates": machine.certificates(),
        }
        made.site.variables("group_vars/all.yml", yaml.safe_dump(access))
        made.write()
        yield made


@pytest.fixture(scope="session")
def first(real: Real) -> tuple[Run, Run]:
    """What a check foretold of the bare machines, and the first run."""
    return real.bootstrap("--check", code=2), real.bootstrap()
