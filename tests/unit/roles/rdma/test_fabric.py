"""Which ports are for the GPUs, and the environment that is made from them."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils import provision_pci, provision_rdma
from ansible.module_utils.provision_host import HostError
from ansible.module_utils.provision_nccl import VARIABLES

from .conftest import LINK_LOCAL, switch, table, v4

EIGHT = "mlx5_0:1,mlx5_1:1,mlx5_2:1,mlx5_3:1,mlx5_4:1,mlx5_5:1,mlx5_6:1,mlx5_7:1"


@pytest.fixture
def module(role_module, tmp_path, monkeypatch):
    module = role_module("rdma", "fabric_env")
    monkeypatch.setattr(module, "RECORDS", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    return module


@pytest.fixture
def make(module, addresses, tmp_path):
    """Write the file; the variables in it, without their quotes."""

    def make(**more):
        wanted = {"path": str(tmp_path / "fabric.env"), "address": "10.1.4.72", "interface": "", "hosts": 2}
        wanted |= {"enabled": True, "devices": [], "exclude": [], "network": "", "variables": {}, "elsewhere": {}}
        made = {}
        for change in module.plan(wanted | more, made):
            change.act()
        lines = (tmp_path / "fabric.env").read_text().splitlines()
        found = {
            name: json.loads(value) for name, value in (line.split("=", 1) for line in lines if line[:1] not in "#")
        }
        assert found == made["variables"]
        assert list(module.plan(wanted | more, {})) == []
        for name in found:
            above = lines[lines.index(next(line for line in lines if line.startswith(f"{name}="))) - 1]
            assert above.startswith("# ")
            assert above.rstrip("#. ")
        return found

    return make


NO_WISHES = {"devices": [], "exclude": []}


def used(*arguments, **more):
    wanted = NO_WISHES | more
    choices = provision_rdma.choose(provision_rdma.ports(), wanted, *(arguments or ("eno1",)))
    return {choice.port.name: choice.why if choice.used else None for choice in choices}


def test_eight_ports_of_which_one_is_down(h800, make):
    found = make()
    assert found == {
        "NCCL_SOCKET_IFNAME": "=eno1",
        "GLOO_SOCKET_IFNAME": "eno1",
        "NCCL_IB_HCA": f"={EIGHT}",
        "UCX_NET_DEVICES": EIGHT,
        "NCCL_NET": "IB",
    }
    h800.write("class/infiniband/mlx5_1/ports/1/state", "4: ACTIVE")
    assert make() == found  # a cable that comes back changes nothing


def test_each_port_is_the_nearest_to_its_gpu(h800):
    assert used() == {
        **{f"mlx5_{number}:1": f"nearest to GPU {number}" for number in range(8)},
        "mlx5_8:1": None,
    }


def test_the_inventory_excludes_and_names_ports(h800, make):
    assert make(exclude=["mlx5_3", "mlx5_5:1"])["UCX_NET_DEVICES"] == EIGHT.replace("mlx5_3:1,", "").replace(
        "mlx5_5:1,", ""
    )
    assert make(devices=["mlx5_8", "mlx5_0:1"])["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_8:1"
    with pytest.raises(
        HostError, match=r"rdma_exclude names mlx5_9, which is no RDMA device of this host. Did you mean mlx5_"
    ):
        make(exclude=["mlx5_9"])


def test_one_host_alone_may_do_without_its_ports(h800, make):
    assert "NCCL_NET" not in make(hosts=1)


def test_rdma_can_be_left_unused(h800, make):
    found = make(enabled=False)
    assert found["NCCL_IB_DISABLE"] == "1"
    assert "NCCL_IB_HCA" not in found


def test_storage_of_infiniband_is_told_by_where_it_sits(h800):
    h800.port("mlx5_9", "pci0000:6c/0000:6c:01.1/0000:6d:00.0")
    assert used()["mlx5_9:1"] is None
    assert used()["mlx5_0:1"]


def test_an_adapter_that_is_gone_does_not_bring_in_storage(server):
    for number, bus in enumerate((0x18, 0x2A)):
        gpu, nic = switch(bus - 3, bus, bus + 1)
        server.gpu(gpu)
        if number == 0:
            server.port("mlx5_0", nic)
    server.port("mlx5_1", "pci0000:4c/0000:4c:01.1/0000:4d:00.0")
    assert used() == {"mlx5_0:1": "nearest to GPU 0", "mlx5_1:1": None}


@pytest.mark.parametrize(
    ("one", "other", "numa", "distance"),
    [
        (switch(0x15, 0x18, 0x19)[0], switch(0x15, 0x18, 0x19)[1], (0, 0), "PIX"),
        ("pci0000:15/0000:15:01.0/0000:16:00.0", "pci0000:15/0000:15:01.0/0000:16:00.1", (0, 0), "PIX"),
        (
            "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:00.0/0000:18:00.0/0000:19:00.0/0000:1a:00.0",
            "pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:1b:00.0",
            (0, 0),
            "PXB",
        ),
        ("pci0000:00/0000:00:01.1/0000:01:00.0", "pci0000:00/0000:00:03.1/0000:02:00.0", (0, 0), "PHB"),
        ("pci0000:00/0000:00:01.1/0000:01:00.0", "pci0000:40/0000:40:01.1/0000:41:00.0", (0, 0), "NODE"),
        ("pci0000:00/0000:00:01.1/0000:01:00.0", "pci0000:80/0000:80:01.1/0000:81:00.0", (0, 1), "SYS"),
    ],
)
def test_distances_are_those_of_nvidia_smi(server, one, other, numa, distance):
    places = [provision_pci.place(server.gpu(way, node)) for way, node in zip((one, other), numa, strict=True)]
    assert provision_pci.distance(*places) == provision_pci.distance(*reversed(places)) == distance


def test_gpus_that_share_a_port(server):
    """Four GPUs and two adapters, each on a switch with two of them; and a third port that sits as near to all as none."""
    for bus, numa, name in ((0x10, 0, "mlx5_0"), (0x90, 1, "mlx5_1")):
        first, second, nic = switch(bus, bus + 8, bus + 9, bus + 10)
        server.gpu(first, numa)
        server.gpu(second, numa)
        server.port(name, nic, numa)
    server.port("mlx5_2", "pci0000:60/0000:60:01.1/0000:61:00.0", 0)
    assert used() == {"mlx5_0:1": "nearest to GPUs 0, 1", "mlx5_1:1": "nearest to GPUs 2, 3", "mlx5_2:1": None}
    table = provision_rdma.distances(provision_pci.gpus(), provision_rdma.ports())
    named = [{name: provision_pci.DISTANCES[far] for name, far in row.items()} for row in table]
    assert named[0] == {"mlx5_0:1": "PIX", "mlx5_1:1": "SYS", "mlx5_2:1": "NODE"}
    assert named[3] == {"mlx5_0:1": "SYS", "mlx5_1:1": "PIX", "mlx5_2:1": "SYS"}


def test_without_switches_every_equally_near_port_counts(server):
    server.gpu("pci0000:00/0000:00:01.1/0000:01:00.0", 0)
    server.gpu("pci0000:80/0000:80:01.1/0000:81:00.0", 1)
    for number, bus in enumerate((0x20, 0x30, 0xA0)):
        server.port(f"mlx5_{number}", f"pci0000:{bus:02x}/0000:{bus:02x}:01.1/0000:{bus + 1:02x}:00.0", int(bus > 0x80))
    assert used() == {
        "mlx5_0:1": "nearest to GPU 0",
        "mlx5_1:1": "nearest to GPU 0",
        "mlx5_2:1": "nearest to GPU 1",
    }


def test_ten_comes_after_nine(server):
    for number in (10, 9, 2):
        server.port(f"mlx5_{number}", f"pci0000:00/0000:00:{number:02x}.1/0000:{number:02x}:00.0")
    assert [port.name for port in provision_rdma.ports()] == ["mlx5_2:1", "mlx5_9:1", "mlx5_10:1"]


# RoCE


def roce(server, *tables, down=()):
    """A GPU with one RoCE adapter for each table of addresses, all on its switch."""
    gpu, *nics = switch(0x10, 0x18, *(0x19 + number for number in range(len(tables))))
    server.gpu(gpu)
    for number, (nic, gids) in enumerate(zip(nics, tables, strict=True)):
        state = "1: DOWN" if number in down else "4: ACTIVE"
        server.port(f"mlx5_{number}", nic, layer="Ethernet", net=f"ens{number}np0", gids=gids, state=state)


@pytest.mark.parametrize(
    ("gids", "network", "index"),
    [
        pytest.param(table("ens0np0", LINK_LOCAL, v4("10.2.0.1")), "", "3", id="as most guides assume"),
        pytest.param(table("ens0np0", v4("10.2.0.1"), LINK_LOCAL), "", "1", id="IPv4 came first"),
        pytest.param(
            table("ens0np0", LINK_LOCAL, "2001:0db8:0000:0000:0000:0000:0000:0001", v4("10.2.0.1")),
            "",
            "5",
            id="IPv6 too",
        ),
        pytest.param(
            [(3, "IB/RoCE v1", v4("10.2.0.1"), "ens0np0"), (7, "RoCE v2", v4("10.2.0.1"), "ens0np0")],
            "",
            "7",
            id="holes",
        ),
        pytest.param(
            [(0, "RoCE v2", "0000:0000:0000:0000:0000:0000:0000:0000", ""), *table("ens0np0", v4("10.2.0.1"), first=4)],
            "",
            "5",
            id="empty slots",
        ),
        pytest.param(table("ens0np0", v4("10.2.0.1"), v4("10.3.0.1")), "10.3.0.0/16", "3", id="of two networks"),
    ],
)
def test_the_gid_index_is_looked_up(server, make, gids, network, index):
    roce(server, gids)
    found = make(network=network)
    assert found["NCCL_IB_HCA"] == "=mlx5_0:1"
    assert found["NCCL_IB_GID_INDEX"] == found["UCX_IB_GID_INDEX"] == index


def test_ports_that_differ_have_nccl_look_itself(server, make):
    first = table("ens0np0", LINK_LOCAL, v4("10.2.0.1"))
    roce(server, first, table("ens1np0", v4("10.2.0.2"), LINK_LOCAL))
    found = make(network="10.2.0.0/16")
    assert "NCCL_IB_GID_INDEX" not in found
    assert {
        name: found[name] for name in ("NCCL_IB_ADDR_FAMILY", "NCCL_IB_ROCE_VERSION_NUM", "NCCL_IB_ADDR_RANGE")
    } == {
        "NCCL_IB_ADDR_FAMILY": "AF_INET",
        "NCCL_IB_ROCE_VERSION_NUM": "2",
        "NCCL_IB_ADDR_RANGE": "10.2.0.0/16",
    }
    assert "NCCL_IB_ADDR_RANGE" not in make()


def test_a_port_without_an_ipv4_address(server, make):
    there = table("ens0np0", LINK_LOCAL, v4("10.2.0.1"))
    roce(server, there, table("ens1np0", LINK_LOCAL), table("ens2np0", LINK_LOCAL), down=(2,))
    with pytest.raises(
        HostError, match=r"^mlx5_1:1 has no IPv4 address for RoCE v2, so NCCL could not reach other hosts"
    ):
        make()
    assert make(hosts=1)["NCCL_IB_GID_INDEX"] == "3"  # nobody is to be reached
    assert make(exclude=["mlx5_1"])["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_2:1"  # one that is down may have none for now
    with pytest.raises(HostError, match=r"for RoCE v2 in 10.7.0.0/16 \(rdma_network\)"):
        make(network="10.7.0.0/16", exclude=["mlx5_1", "mlx5_2"])


def test_the_port_of_the_hosts_own_network_is_left_out(server, make, addresses):
    roce(server, table("ens0np0", v4("10.2.0.1")), table("bond0", v4("10.1.4.72")))
    addresses["bond0.7"] = addresses.pop("eno1")
    server.lower("bond0.7", "bond0")
    server.lower("bond0", "ens1np0", "ens9np0")
    found = make()
    assert found["NCCL_SOCKET_IFNAME"] == "=bond0.7"
    assert found["GLOO_SOCKET_IFNAME"] == "bond0.7"
    assert found["NCCL_IB_HCA"] == "=mlx5_0:1"


def test_a_host_whose_one_roce_bond_carries_all(server, make, addresses):
    roce(server, table("bond0", LINK_LOCAL, v4("10.1.4.72")))
    addresses["bond0"] = addresses.pop("eno1")
    server.lower("bond0", "ens0np0", "ens1np0")
    found = make()
    assert found["NCCL_IB_HCA"] == "=mlx5_0:1"
    assert found["NCCL_IB_GID_INDEX"] == "3"


def test_soft_roce_is_used_where_there_is_nothing_better(server, make):
    server.soft("rxe0", table("ens0np0", LINK_LOCAL, v4("10.2.0.1")))
    found = make()
    assert found["NCCL_IB_HCA"] == "=rxe0:1"
    assert found["NCCL_IB_GID_INDEX"] == "3"
    roce(server, table("ens1np0", v4("10.2.0.2")))
    assert make()["NCCL_IB_HCA"] == "=mlx5_0:1"
    why = {choice.port.name: choice.why for choice in provision_rdma.choose(provision_rdma.ports(), NO_WISHES, "eno1")}
    assert why["rxe0:1"] == "the kernel makes it in software, and this host has adapters"


# Ethernet, addresses, the inventory's own variables


def test_a_host_without_rdma(server, make):
    assert make() == {
        "NCCL_SOCKET_IFNAME": "=eno1",
        "GLOO_SOCKET_IFNAME": "eno1",
        "NCCL_IB_DISABLE": "1",
        "UCX_NET_DEVICES": "eno1",
    }


def test_the_interface_is_that_of_the_address(server, make, addresses):
    addresses.update(
        {"eno1": ["10.1.4.71", "10.1.4.70"], "bond0": ["10.8.0.1", "10.1.4.72", "fd00::72"], "lo": ["10.1.4.73"]}
    )
    assert make()["GLOO_SOCKET_IFNAME"] == "bond0"
    assert make(address="fd00::72")["GLOO_SOCKET_IFNAME"] == "bond0"
    assert make(address="10.1.4.73", interface="eno1")["GLOO_SOCKET_IFNAME"] == "eno1"
    with pytest.raises(
        HostError, match=r"No interface of this host has 10.1.4.99.*eno1 has 10.1.4.71, 10.1.4.70; bond0 has"
    ):
        make(address="10.1.4.99")
    with pytest.raises(HostError, match="or ray_interface, where the address is the loopback's"):
        make(address="10.1.4.73")


def test_the_inventory_adds_and_overrules(server, make, tmp_path):
    found = make(variables={"NCCL_IB_TC": 106, "UCX_NET_DEVICES": None, "GLOO_SOCKET_IFNAME": "eno2", "MY_OWN": True})
    assert found == {
        "NCCL_SOCKET_IFNAME": "=eno1",
        "GLOO_SOCKET_IFNAME": "eno2",
        "NCCL_IB_DISABLE": "1",
        "MY_OWN": "1",
        "NCCL_IB_TC": "106",
    }
    assert "# Set by the inventory (rdma_env); without it: eno1. " in (tmp_path / "fabric.env").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"variables": {"NCCL_IB_HCAS": "mlx5_0"}}, "NCCL has no variable NCCL_IB_HCAS. Did you mean NCCL_IB_HCA?"),
        (
            {"variables": {"NCCL_TIMEOUT": 1800}},
            "NCCL has no variable NCCL_TIMEOUT: the timeout of collectives is vllm_args",
        ),
        ({"variables": {"NCCL_NET": "IB:mlx5_0"}}, "NCCL_NET is the name of one network, such as IB, not IB:mlx5_0"),
        ({"variables": {"NOT A NAME": 1}}, "'NOT A NAME' is no name of a variable"),
        (
            {"elsewhere": {"ray_env": ["NCCL_DEBUG", "TZ"]}},
            "NCCL_DEBUG stands in ray_env; move it to rdma_env. Nothing was",
        ),
        ({"elsewhere": {"vllm_env": ["UCX_TLS"]}}, "UCX_TLS stands in vllm_env; move it to rdma_env"),
    ],
)
def test_what_nothing_would_read_is_refused(server, make, more, words):
    with pytest.raises(HostError, match=words):
        make(**more)


def test_what_is_made_are_variables_of_nccl(h800, server, make):
    made = set(make())
    for number in range(9):
        (server.root / f"class/infiniband/mlx5_{number}").rename(server.root / f"mlx5_{number}.gone")
    made |= set(make())
    assert {name for name in made if name.startswith("NCCL_")} <= VARIABLES
    assert {"NCCL_DEBUG", "NCCL_IB_GID_INDEX", "NCCL_IB_ADDR_RANGE", "NCCL_IB_TC"} <= VARIABLES
    assert not {"NCCL_TIMEOUT", "NCCL_NVLINK_ENABLE", "NCCL_IB_ENABLE"} & VARIABLES


def test_who_runs_with_another_file_must_start_again(module, addresses, server, tmp_path):
    wanted = {"path": str(tmp_path / "fabric.env"), "address": "10.1.4.72", "interface": "", "hosts": 1}
    wanted |= {"enabled": True, "devices": [], "exclude": [], "network": "", "variables": {}, "elsewhere": {}}
    made = {}
    (change,) = module.plan(wanted, made)
    assert change.effect == "none"
    record = tmp_path / "run/ray-head.service.consumed"
    record.write_text(f"0123 4567\n{made['sha256']}  {wanted['path']}\n")
    (change,) = module.plan(wanted, made)  # edited by hand, while what runs has the right one
    assert change.effect == "none"
    record.write_text(f"0123 4567\n{'0' * 64}  {wanted['path']}\n")
    (change,) = module.plan(wanted, made)
    assert change.effect == "restart"
