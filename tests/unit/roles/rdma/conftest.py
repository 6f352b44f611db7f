"""Servers as sysfs shows them, in a directory: GPUs, adapters, the bridges above them, RDMA ports, interfaces."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from ansible.module_utils import provision_pci, provision_rdma
from ansible.module_utils.provision_host import Ran

NVIDIA, MELLANOX = ("0x10de", "0x030200"), ("0x15b3", "0x020700")
BRIDGE = ("0x1000", "0x060400")


class Server:
    """Builds `/sys` below `root`."""

    def __init__(self, root: Path):
        self.root, self.addresses = root, {}
        (root / "bus/pci/devices").mkdir(parents=True)
        (root / "class/infiniband").mkdir(parents=True)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def device(self, steps: str, kind: tuple[str, str], numa: int = 0, acs: int = 0, iommu: str = "") -> str:
        """A device by what leads to it, as in `pci0000:15/0000:15:01.0/0000:18:00.0`; its bridges come with it."""
        *above, address = steps.split("/")
        for place, step in enumerate(above):
            if place and not (self.root / "bus/pci/devices" / step).exists():
                self.device("/".join(above[: place + 1]), BRIDGE, numa)
        home = f"devices/{steps}"
        for name, text in {"vendor": kind[0], "class": kind[1], "numa_node": str(numa)}.items():
            self.write(f"{home}/{name}", text)
        (self.root / home / "config").write_bytes(registers(acs))
        (self.root / "bus/pci/devices" / address).symlink_to(f"../../../{home}")
        if iommu:
            self.write(f"kernel/iommu_groups/{address}/type", iommu)
            (self.root / home / "iommu_group").symlink_to(self.root / f"kernel/iommu_groups/{address}")
        return address

    def gpu(self, steps: str, numa: int = 0, **more) -> str:
        return self.device(steps, NVIDIA, numa, **more)

    def soft(self, name: str, gids=()) -> None:
        """A port that the kernel makes in software: like any other, but that it has no place on the bus."""
        self.port(name, f"pci0000:00/{name}", layer="Ethernet", gids=gids)
        (self.root / f"class/infiniband/{name}/device").unlink()
        (self.root / f"bus/pci/devices/{name}").unlink()

    def port(
        self, name: str, steps: str, numa=0, layer="InfiniBand", state="4: ACTIVE", net="", gids=(), number=1
    ) -> None:
        """A port and its adapter; `gids` are (index, type, address, interface)."""
        address = steps.rsplit("/", maxsplit=1)[-1]
        if not (self.root / "bus/pci/devices" / address).exists():
            self.device(steps, MELLANOX, numa)
        base = f"class/infiniband/{name}"
        physical = "5: LinkUp" if "ACTIVE" in state else "2: Polling"
        facts = {"link_layer": layer, "state": state, "phys_state": physical, "rate": "400 Gb/sec (4X NDR)"}
        for file, text in facts.items():
            self.write(f"{base}/ports/{number}/{file}", text)
        for index, kind, gid, interface in gids:
            self.write(f"{base}/ports/{number}/gids/{index}", gid)
            self.write(f"{base}/ports/{number}/gid_attrs/types/{index}", kind)
            self.write(f"{base}/ports/{number}/gid_attrs/ndevs/{index}", interface)
        if not (self.root / base / "device").exists():
            (self.root / base / "device").symlink_to(self.root / f"bus/pci/devices/{address}")
        if net:
            self.write(f"devices/{steps}/net/{net}/mtu", "1500")

    def lower(self, upper: str, *parts: str) -> None:
        """A bond or VLAN and what it is made of."""
        for part in parts:
            self.write(f"class/net/{upper}/lower_{part}/mtu", "1500")


def registers(acs: int) -> bytes:
    """A configuration space with the PCI Express capability, and ACS with these bits of control."""
    space = bytearray(4096)
    space[6], space[0x34] = 0x10, 0x60
    space[0x60:0x64] = struct.pack("<BBH", 0x10, 0, 2)
    space[0x68:0x6A] = struct.pack("<H", 0x2930)
    space[0x100:0x104] = struct.pack("<I", 0x0001 | 1 << 16 | 0x140 << 20)  # error reporting, and then:
    space[0x140:0x144] = struct.pack("<I", 0x000D | 1 << 16)
    space[0x146:0x148] = struct.pack("<H", acs)
    return bytes(space)


def switch(bus: int, *devices: int) -> list[str]:
    """The ways to devices below one switch whose host bridge is `bus`; devices by their own bus."""
    root = f"pci0000:{bus:02x}/0000:{bus:02x}:01.0/0000:{bus + 1:02x}:00.0"
    return [f"{root}/0000:{bus + 2:02x}:{n:02x}.0/0000:{device:02x}:00.0" for n, device in enumerate(devices)]


def v4(text: str) -> str:
    """An IPv4 address as a table of GIDs has it."""
    a, b, c, d = map(int, text.split("."))
    return f"0000:0000:0000:0000:0000:ffff:{a:02x}{b:02x}:{c:02x}{d:02x}"


def table(interface: str, *addresses: str, first: int = 0) -> list[tuple[int, str, str, str]]:
    """What a RoCE port has for these addresses: each twice, for either version."""
    rows = []
    for number, address in enumerate(addresses):
        for version, kind in enumerate(("IB/RoCE v1", "RoCE v2")):
            rows.append((first + 2 * number + version, kind, address, interface))
    return rows


LINK_LOCAL = "fe80:0000:0000:0000:a288:c2ff:fee3:142a"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Server:
    monkeypatch.setattr(provision_pci, "SYS", tmp_path / "sys")
    return Server(tmp_path / "sys")


@pytest.fixture
def h800(server) -> Server:
    """Eight GPUs, each with an adapter on its switch; mlx5_1 is down; mlx5_8 is RoCE, for storage, on a port of its own."""
    for number, bus in enumerate((0x18, 0x2A, 0x3A, 0x5D, 0x9A, 0xAB, 0xBA, 0xDB)):
        numa = number // 4
        gpu, nic = switch(bus - 3, bus, bus + 1)
        server.gpu(gpu, numa)
        server.port(f"mlx5_{number}", nic, numa, state="1: DOWN" if number == 1 else "4: ACTIVE")
    gids = table("ens8np0", LINK_LOCAL, v4("10.9.0.1"))
    server.port("mlx5_8", "pci0000:4c/0000:4c:01.1/0000:4d:00.0", layer="Ethernet", net="ens8np0", gids=gids)
    return server


@pytest.fixture
def addresses(monkeypatch):
    """What `ip` says of the host's addresses: interface → addresses."""
    found = {"lo": ["127.0.0.1"], "eno1": ["10.1.4.72"]}

    def run(argv, **_options):
        assert argv[:2] == ["ip", "-json"]
        links = [{"ifname": name, "addr_info": [{"local": each} for each in own]} for name, own in found.items()]
        return Ran(0, json.dumps(links), "")

    monkeypatch.setattr(provision_rdma, "run", run)
    return found
