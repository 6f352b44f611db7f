"""What is set on RDMA ports, and what is said of them."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils import provision_pci
from ansible.module_utils.provision_host import HostError, Ran

from .conftest import LINK_LOCAL, switch, table, v4

VERBS = ("ib_uverbs", "mlx5_ib")


@pytest.fixture
def module(role_module, tmp_path, monkeypatch, server, addresses):
    """The module on a host with the open driver, and kernel 6.1; `refuses` are kernel modules that do not load."""
    module = role_module("rdma", "rdma_ports")
    module.ran, module.refuses, module.says = [], set(), {}
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.126.20  Release Build\n")
    monkeypatch.setattr(module, "DRIVER", str(driver))
    monkeypatch.setattr(module.os, "uname", lambda: type("Uname", (), {"release": "6.1.0-40-amd64"}))

    def run(argv, **_options):
        module.ran.append(" ".join(argv))
        if argv[0] == "modprobe":
            if argv[1] in module.refuses:
                return Ran(1, "", f"modprobe: ERROR: could not insert '{argv[1]}': Invalid argument\n")
            (server.root / "module" / argv[1]).mkdir(parents=True)
        if argv[:3] == ["ip", "link", "set"]:
            server.write(f"class/net/{argv[4]}/mtu", argv[6])
        return module.says.get(argv[0], Ran(0 if argv[0] in ("modprobe", "ip") else 127, "", ""))

    monkeypatch.setattr(module, "run", run)
    for name in VERBS:
        (server.root / "module" / name).mkdir(parents=True)
    return module


@pytest.fixture
def apply(module, tmp_path):
    """Bring the ports about; sentences, effects and facts. A second time there must be nothing to do."""

    def apply(**more):
        wanted = {"enabled": True, "address": "10.1.4.72", "interface": "", "devices": [], "exclude": []}
        wanted |= {"down_ports": "warn", "gpudirect": "auto", "open_driver": True, "max_read_request": 0, "mtu": 0}
        wanted |= {"script": str(tmp_path / "ports.sh"), "modules_file": str(tmp_path / "modules.conf")} | more
        foretold = [change.action for change in module.plan(wanted, module.Look())]
        done, look = [], module.Look()
        for change in module.plan(wanted, look):
            change.act()
            done.append(change)
        assert [change.action for change in done] == foretold
        assert list(module.plan(wanted, module.Look())) == []
        return [change.action for change in done], [change.effect for change in done], module.facts(wanted, look)

    return apply


def test_dma_buf_needs_no_module_of_its_own(h800, apply, tmp_path):
    actions, _, facts = apply()
    assert actions == [f"Wrote {tmp_path / 'modules.conf'}."]
    assert (tmp_path / "modules.conf").read_text().splitlines()[1:] == ["ib_uverbs", "mlx5_ib"]
    assert facts["gpudirect"] == "dmabuf"
    assert facts["settings"] is False


def test_peermem_is_loaded_now_and_at_every_boot(h800, apply, tmp_path):
    actions, effects, facts = apply(gpudirect="peermem")
    assert actions[-1] == "Loaded the kernel's module nvidia_peermem."
    assert set(effects) == {"none"}
    assert (tmp_path / "modules.conf").read_text().splitlines()[1:] == ["ib_uverbs", "mlx5_ib", "nvidia_peermem"]
    assert facts["gpudirect"] == "peermem"


@pytest.mark.parametrize(
    ("driver", "kernel", "way", "more"),
    [
        ("NVIDIA UNIX Open Kernel Module for x86_64  580.126.20", "6.8.0-60-generic", "dmabuf", {}),
        ("NVIDIA UNIX x86_64 Kernel Module  580.126.20", "6.8.0-60-generic", "peermem", {}),
        ("NVIDIA UNIX Open Kernel Module for x86_64  580.126.20", "5.4.0-200-generic", "peermem", {}),
        (None, "6.1.0-40-amd64", "dmabuf", {}),  # a bare host, by what it will get
        (None, "6.1.0-40-amd64", "peermem", {"open_driver": False}),
    ],
)
def test_the_way_to_the_memory_of_the_gpus(h800, module, apply, tmp_path, driver, kernel, way, more):
    module.os.uname = lambda: type("Uname", (), {"release": kernel})
    module.DRIVER = str(tmp_path / "now")
    if driver:
        (tmp_path / "now").write_text(f"NVRM version: {driver}\n")
    assert apply(**more)[2]["gpudirect"] == way
    if way == "peermem":
        with pytest.raises(
            HostError, match=r"cannot reach the memory of the GPUs by dma-buf: .*driver_kernel_modules: open"
        ):
            apply(gpudirect="dmabuf", **more)


def test_a_kernel_that_refuses_peermem_is_explained(h800, module, apply):
    module.refuses.add("nvidia_peermem")
    with pytest.raises(HostError, match=r"does not load nvidia_peermem: .*Invalid argument.* rdma_gpudirect: dmabuf"):
        apply(gpudirect="peermem")


def test_a_host_without_rdma_has_nothing_to_set(server, apply, tmp_path):
    (tmp_path / "modules.conf").write_text("mlx5_ib\n")
    server.gpu(switch(0x15, 0x18)[0])
    actions, _, facts = apply(max_read_request=4096, mtu=9000, gpudirect="peermem", down_ports="fail")
    assert actions == [f"Removed {tmp_path / 'modules.conf'}."]
    assert facts == {"ports": {}, "near": {"0": []}, "gpudirect": "", "notes": [], "settings": False}


def test_rdma_that_is_not_wanted(h800, apply):
    actions, _, facts = apply(enabled=False, max_read_request=4096)
    assert actions == []
    assert facts["ports"] == {}


def test_modules_that_nobody_loaded(h800, apply, server):
    for name in VERBS:
        (server.root / "module" / name).rmdir()
    actions, _, _ = apply()
    assert actions[1:] == [f"Loaded the kernel's module {name}." for name in VERBS]


def test_a_port_that_is_down(h800, apply, module):
    _, _, facts = apply()
    (note,) = facts["notes"]
    assert note == (
        "mlx5_1:1 (InfiniBand, nearest to GPU 1) is DOWN, physically Polling: look at its cable and at the switch "
        "(ibstat mlx5_1)."
    )
    with pytest.raises(
        HostError, match=r"mlx5_1:1 .* is DOWN.* To serve without, until it is repaired: rdma_exclude: \[mlx5_1:1\]"
    ):
        apply(down_ports="fail")
    assert apply(down_ports="fail", exclude=["mlx5_1:1"])[2]["notes"] == []


def test_what_is_recorded(h800, module, apply):
    module.says["ibv_devinfo"] = Ran(
        0,
        "hca_id:\tmlx5_0\n\ttransport:\t\t\tInfiniBand (0)\n\t\tport:\t1\n\t\t\tstate:\t\t\tPORT_ACTIVE (4)\n"
        "\t\t\tmax_mtu:\t\t4096 (5)\n\t\t\tactive_mtu:\t\t4096 (5)\n"
        "hca_id:\tmlx5_1\n\t\tport:\t1\n\t\t\tactive_mtu:\t\tinvalid MTU (0)\n",
        "",
    )
    ports, near = (apply()[2][name] for name in ("ports", "near"))
    assert ports["mlx5_0:1"] == {
        "used": True,
        "why": "nearest to GPU 0",
        "pci": "0000:19:00.0",
        "numa": "0",
        "link_layer": "InfiniBand",
        "state": "ACTIVE",
        "rate": "400 Gb/sec (4X NDR)",
        "mtu": {},
        "active_mtu": 4096,
        "max_read_request": 512,
        "relaxed_ordering": True,
    }
    # Of what the GPUs do not use nothing is recorded that changes by itself.
    assert set(ports["mlx5_8:1"]) == {"used", "why", "pci", "numa", "link_layer"}
    assert ports["mlx5_8:1"]["why"] == "it is RoCE, and the GPUs have InfiniBand"
    assert near["2"][:2] == ["mlx5_2:1 PIX", "mlx5_0:1 NODE"]
    assert near["2"][-1] == "mlx5_7:1 SYS"
    assert len(near) == len(near["2"]) == 8


def test_read_requests_are_set_now_and_at_boot(h800, apply, tmp_path):
    actions, effects, facts = apply(max_read_request=4096, exclude=["mlx5_7"])
    assert actions[2:] == [
        f"Set the read requests of 0000:{bus}:00.0 to 4096 bytes (they were 512)."
        for bus in ("19", "2b", "3b", "5e", "9b", "ac", "bb")
    ]
    assert set(effects) == {"none"}
    assert facts["settings"] is True
    assert provision_pci.max_read_request("0000:19:00.0") == 4096
    assert provision_pci.relaxed_ordering("0000:19:00.0") is True  # its other bits are left
    assert provision_pci.max_read_request("0000:dc:00.0") == 512
    assert "setpci -s 0000:19:00.0 CAP_EXP+8.w=5000:7000 || failed=1\n" in (tmp_path / "ports.sh").read_text()
    assert apply(exclude=["mlx5_7"])[0] == [f"Removed {tmp_path / 'ports.sh'}."]


@pytest.fixture
def roce(server):
    gpu, nic = switch(0x10, 0x18, 0x19)
    server.gpu(gpu)
    server.port("mlx5_0", nic, layer="Ethernet", net="ens0np0", gids=table("ens0np0", LINK_LOCAL, v4("10.2.0.1")))
    return server


def test_the_mtu_of_roce_is_set_where_asked(roce, apply, module, tmp_path):
    assert apply()[2]["ports"]["mlx5_0:1"]["mtu"] == {"ens0np0": 1500}
    actions, effects, facts = apply(mtu=9000)
    assert actions == [f"Wrote {tmp_path / 'ports.sh'}.", "Set the MTU of ens0np0 to 9000 (it was 1500)."]
    assert effects == ["none", "restart"]
    assert "ip link set dev ens0np0 mtu 9000" in module.ran
    assert (
        "mtu" not in facts["ports"]["mlx5_0:1"]
    )  # who changes it by hand is told of that by the change that undoes it


def test_soft_roce_has_no_registers(server, apply):
    server.soft("rxe0", table("ens0np0", LINK_LOCAL, v4("10.2.0.1")))
    actions, _, facts = apply(max_read_request=4096)
    assert not any("read requests" in action for action in actions)
    assert facts["ports"]["rxe0:1"]["pci"] == ""
    assert facts["ports"]["rxe0:1"]["state"] == "ACTIVE"


def test_priorities_are_recorded_where_a_tool_tells_them(roce, apply, module):
    unknown = {"trust": "unknown", "pfc": "unknown"}
    port = apply()[2]["ports"]["mlx5_0:1"]
    assert port["priorities"] == {"ens0np0": unknown}
    assert port["gids"]["3"] == "RoCE v2 10.2.0.1 ens0np0"
    module.says["dcb"] = Ran(0, "prio-pfc 0:off 1:off 2:off 3:on 4:off 5:off 6:off 7:off \n", "")
    assert apply()[2]["ports"]["mlx5_0:1"]["priorities"]["ens0np0"] == {"trust": "unknown", "pfc": "3"}
    module.says["mlnx_qos"] = Ran(
        0,
        "DCBX mode: OS controlled\nPriority trust state: dscp\nPFC configuration:\n"
        "\tpriority    0   1   2   3   4   5   6   7\n\tenabled     0   0   0   1   0   0   0   0\n",
        "",
    )
    assert apply()[2]["ports"]["mlx5_0:1"]["priorities"]["ens0np0"] == {"trust": "dscp", "pfc": "3"}


def test_what_stands_in_the_way_of_gpudirect(server, apply):
    gpu, nic = switch(0x10, 0x18, 0x19)
    server.gpu(gpu, iommu="DMA-FQ")
    server.port("mlx5_0", nic)
    root, upper, above = gpu.split("/")[:3]
    below = server.device(f"{root}/{upper}/{above}/0000:12:02.0", ("0x1000", "0x060400"), acs=0x1D)
    assert not provision_pci.redirects("0000:12:00.0")
    assert provision_pci.redirects(below)
    config = server.root / f"devices/{root}/{upper}/{above}/0000:12:00.0/config"
    data = bytearray(config.read_bytes())
    data[0x146] = 0x1D
    config.write_bytes(data)
    iommu, acs = apply()[2]["notes"]
    assert iommu.startswith("The IOMMU translates (DMA-FQ) what 1 of the GPUs and RDMA ports read and write")
    assert "iommu=pt" in iommu
    assert "(ACS): 0000:12:00.0. GPUDirect" in acs  # not that of a bridge that leads to neither


def test_an_iommu_that_passes_through_is_no_obstacle(server, apply):
    gpu, nic = switch(0x10, 0x18, 0x19)
    server.gpu(gpu, iommu="identity")
    server.port("mlx5_0", nic)
    assert apply()[2]["notes"] == []


def test_facts_can_be_kept_in_a_receipt(h800, apply):
    facts = apply()[2]
    assert json.loads(json.dumps(facts)) == facts


def test_ports_of_another_maker_need_no_module_of_mlx5(server, apply, tmp_path):
    gpu, nic = switch(0x10, 0x18, 0x19)
    server.gpu(gpu)
    server.device(nic, ("0x14e4", "0x020000"))
    server.port("bnxt_re0", nic, layer="Ethernet", gids=table("ens0np0", v4("10.2.0.1")))
    assert apply()[2]["gpudirect"] == "dmabuf"
    assert (tmp_path / "modules.conf").read_text().splitlines()[1:] == ["ib_uverbs"]
