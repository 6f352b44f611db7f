"""What the program on a host makes of what it reads there."""

from __future__ import annotations

import http.server
import json
import os
import socket
import struct
import threading
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import pytest

from provision.preflight.host import disks, machine, net, nvidia, packages, pci, ports, processes, rdma, reach, weights

RECORDED = Path(__file__).parents[1] / "lab/hardware/recorded"
TOPOLOGY = (
    "\t\x1b[4mGPU0\tGPU1\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m\n"
    "GPU0\t X \tNV18\tPIX\t0-31\t0\t\tN/A\nGPU1\tNV18\t X \tSYS\t0-31\t0\t\tN/A\nNIC0\tPIX\tSYS\t X \t\t\t\t\n"
)


def test_links_of_a_recorded_host() -> None:
    text = (RECORDED / "nvlink.txt").read_text()
    assert nvidia.links(text) == [{"up": 18, "down": 0}] * 2
    assert nvidia.links(text.replace("26.562 GB/s", "<inactive>", 3))[0] == {"up": 15, "down": 3}
    assert nvidia.links("") == []


def test_topology() -> None:
    assert nvidia.topology(TOPOLOGY) == {
        "GPU0": {"GPU1": "NV18", "NIC0": "PIX"},
        "GPU1": {"GPU0": "NV18", "NIC0": "SYS"},
    }
    assert nvidia.topology("NVIDIA-SMI has failed") == {}


def test_processes_from_both_lists(monkeypatch) -> None:
    monkeypatch.setattr(nvidia, "holders", lambda: {"/dev/nvidia1": {11, 12}, "/dev/nvidia0": {11}, "socket:[1]": {9}})
    monkeypatch.setattr(nvidia, "describe", lambda pid: {"pid": pid})
    assert nvidia.processes("11, python3, 900\n13, x, [N/A]\n") == [
        {"pid": 11, "gpus": [0, 1], "memory_mib": 900},
        {"pid": 12, "gpus": [1], "memory_mib": 0},
        {"pid": 13, "gpus": [], "memory_mib": 0},
    ]


def test_this_process_and_its_port_are_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        processes._seen.clear()
        asked = {"ports": [{"wanted_by": "vllm_port", "from": port, "to": port}]}
        (found,) = ports.look(asked)
    assert (found["port"], found["wanted_by"], found["pid"]) == (port, "vllm_port", os.getpid())
    assert ports.look({"ports": []}) == []


MOUNTS = """\
22 1 259:2 / / rw - ext4 /dev/nvme0n1p2 rw
23 22 0:45 / /data rw - nfs4 filer:/x rw
24 22 8:17 / /big\\040disk rw - xfs /dev/sdb1 rw
"""


def test_mounts() -> None:
    mounts = disks.mounted(MOUNTS)
    assert [(mount["at"], mount["type"]) for mount in mounts] == [
        ("/", "ext4"),
        ("/data", "nfs4"),
        ("/big disk", "xfs"),
    ]
    assert disks.is_below("/data/models", "/data")
    assert disks.is_below("/data", "/")
    assert not disks.is_below("/data2", "/data")


@pytest.mark.parametrize(
    ("system", "names", "kind"),
    [("nfs4", [], "network"), ("tmpfs", [], "memory"), ("ext4", ["nvme0n1", "nvme1n1"], "nvme"), ("ext4", ["vda"], "virtual"), ("overlay", [], "unknown")],
)  # fmt: skip
def test_kinds_of_disks(system, names, kind) -> None:
    assert disks.kind_of(system, names) == kind


def test_the_slowest_disk_counts(monkeypatch) -> None:
    monkeypatch.setattr(disks, "read_text", lambda path: "1\n" if "sdb" in path else "0\n")
    assert disks.kind_of("ext4", ["sda"]) == "ssd"
    assert disks.kind_of("ext4", ["sda", "sdb"]) == "rotational"


def test_this_machines_disks() -> None:
    (found,) = disks.look({"paths": {"state": "/var/not/there"}}).values()
    assert found["size"] > found["free"] > 0
    assert found["mount"].startswith("/")


def test_interfaces() -> None:
    link = {"ifname": "bond0", "mtu": 9000, "flags": ["UP", "LOWER_UP"], "addr_info": [{"local": "10.0.0.1"}]}
    text = json.dumps([{"ifname": "lo", "mtu": 65536, "flags": ["LOOPBACK"]}, link])
    assert net.interfaces(text) == [{"name": "bond0", "mtu": 9000, "up": True, "addresses": ["10.0.0.1"]}]


def space(kind: int, acs: int | None) -> bytes:
    """A bridge's configuration space, with a port of a kind, and access control set so."""
    data = bytearray(4096)
    data[0x06], data[0x34] = 0x10, 0x40
    data[0x40:0x44] = struct.pack("<BBH", 0x10, 0, 2 | kind << 4)
    struct.pack_into("<I", data, 0x100, 0x0001 | 1 << 16 | 0x148 << 20)  # error reporting comes first
    if acs is not None:
        struct.pack_into("<IHH", data, 0x148, 0x000D | 1 << 16, 0x5F, acs)
    return bytes(data)


def test_access_control_in_switches(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pci.pci, "SYS", tmp_path)
    assert pci.look({}) == {"iommu": [], "acs_redirect": []}
    bridges = {"0": (6, 0x1D), "1": (6, 0), "2": (4, 0x1D), "3": (6, None)}
    for name, (kind, acs) in bridges.items():
        folder = tmp_path / "bus/pci/devices" / name
        folder.mkdir(parents=True)
        (folder / "class").write_text("0x060400\n")
        (folder / "config").write_bytes(space(kind, acs))
    gpu = tmp_path / "bus/pci/devices/9/iommu_group"
    gpu.mkdir(parents=True)
    (gpu.parent / "vendor").write_text("0x10de\n")
    (gpu.parent / "class").write_text("0x030200\n")
    (gpu / "type").write_text("DMA-FQ\n")
    assert pci.look({}) == {"iommu": ["DMA-FQ"], "acs_redirect": ["0"]}


def test_active_mtus() -> None:
    text = "hca_id:\tmlx5_0\n\tfw_ver:\t28.43\n\t\tport:\t1\n\t\t\tactive_mtu:\t4096 (5)\nhca_id:\tmlx5_1\n\t\tport:\t1\n\t\t\tactive_mtu:\t1024 (3)\n"
    assert rdma.active_mtus(text) == {("mlx5_0", 1): 4096, ("mlx5_1", 1): 1024}
    assert rdma.active_mtus("No IB devices found\n") == {}


def test_soft_roce_has_no_place_on_the_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rdma, "ADAPTERS", tmp_path)
    monkeypatch.setattr(rdma, "run", lambda *_arguments, **_options: SimpleNamespace(out=""))
    (tmp_path / "rxe0/ports/1").mkdir(parents=True)
    (tmp_path / "rxe0/ports/1/state").write_text("4: ACTIVE\n")
    (port,) = rdma.look({})["ports"]
    assert (port["address"], port["state"], port["numa"]) == ("", "ACTIVE", "-1")


DUMP = """\
APT::Periodic "";
APT::Periodic::Unattended-Upgrade "1";
Unattended-Upgrade::Package-Blacklist "";
Unattended-Upgrade::Package-Blacklist:: "^nvidia-";
Unattended-Upgrade::Package-Blacklist:: "^libcuda1$";
Acquire::http::Proxy "http://proxy:3128";
"""


def test_settings_of_apt() -> None:
    settings = packages.apt_settings(DUMP)
    assert packages.is_on(settings)
    assert not packages.is_on({})
    patterns = settings["Unattended-Upgrade::Package-Blacklist"]
    assert [packages.is_listed(name, patterns) for name in ("nvidia-open", "libcuda1", "libcuda1-x")] == [
        True,
        True,
        False,
    ]


def test_proxies_that_apt_has(monkeypatch) -> None:
    monkeypatch.setattr(reach, "run", lambda *_a, **_k: type("Ran", (), {"out": DUMP}))
    assert reach.own_proxies() == {"http": "http://proxy:3128"}


def test_packages_of_this_machine() -> None:
    found = packages.look({})
    assert found["broken"] == []
    assert isinstance(found["unattended"], bool)


DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror/debian
 http://other/debian/
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: https://flat/repo
Suites: ./

Enabled: no
Types: deb
URIs: http://off/
Suites: x

Types: deb
URIs: file:/srv/mirror
Suites: x
"""


def test_sources_of_apt() -> None:
    assert list(reach.deb822(DEB822)) == [
        "http://mirror/debian/dists/bookworm/InRelease",
        "http://other/debian/dists/bookworm/InRelease",
        "https://flat/repo/./InRelease",
    ]
    lines = "deb [signed-by=/x arch=amd64] https://m/u noble main\n# deb http://no/ x\ndeb-src http://no/ x\ndeb http://nv/ /\n"
    assert list(reach.one_line(lines)) == ["https://m/u/dists/noble/InRelease", "http://nv/InRelease"]


def test_sources_of_the_inventory_take_the_place_of_the_hosts(tmp_path, monkeypatch) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("deb http://stock/ x main\n")
    (tmp_path / "sources.list.d/debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d/own.list").write_text("deb http://own/ x main\n")
    (tmp_path / "sources.list.d/provision-nvidia.sources").write_text(DEB822)
    monkeypatch.setattr(reach, "LISTS", tmp_path)
    hosts = [each["url"].split("/")[2] for each in reach.apt_places({})]
    assert hosts == ["mirror", "other", "flat", "own", "stock"]
    ours = reach.apt_places({"debian": "Types: deb\nURIs: http://site/\nSuites: x\n"})
    assert [each["url"].split("/")[2] for each in ours] == ["site", "own"]


@pytest.mark.parametrize(
    ("name", "bypassed"),
    [("a.inside", True), ("inside", True), ("b.example", False), ("10.1.2.3", True), ("11.1.2.3", False)],
)
def test_what_goes_past_the_proxy(name, bypassed) -> None:
    assert reach.bypasses(name, [".inside", "inside", "10.0.0.0/8"]) is bypassed


@pytest.fixture
def hub():
    """A server on this machine that has one list of files, and refuses all else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.seen.append((self.path, self.headers.get("Authorization")))
            files = [{"type": "file", "path": name, "size": 5} for name in ("a", "b.pth", ".git/x")]
            body = json.dumps([*files, {"type": "directory", "path": "d"}]).encode()
            self.send_response(200 if "tree" in self.path else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_addresses_are_tried(hub, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reach, "LISTS", tmp_path)
    base = f"http://127.0.0.1:{hub.server_port}"
    free = socket.create_server(("127.0.0.1", 0))
    closed = free.getsockname()[1]
    free.close()
    endpoints = [
        {"use": "weights", "named": "weights_endpoint", "url": f"{base}/tree", "exclude": ["*.pth"], "token": "geheim"},
        {"use": "python", "named": "site_python_index_url", "url": f"http://u:p%40@127.0.0.1:{hub.server_port}/none"},
        {"use": "python", "named": "refused", "url": f"http://u:geheim@127.0.0.1:{closed}/"},
        {"use": "path", "named": "links", "url": str(tmp_path)},
    ]
    asked = {"endpoints": endpoints, "apt_sources": {}, "proxies": {"http": ""}, "no_proxy": [], "certificates": []}
    monkeypatch.setattr(reach, "own_proxies", dict)
    found = {each["named"]: each for each in reach.look({"reach": asked})}
    assert (found["weights_endpoint"]["failure"], found["weights_endpoint"]["bytes"]) == ("", 5)
    assert ("/tree", "Bearer geheim") in hub.seen
    assert ("/none", "Basic dTpwQA==") in hub.seen
    assert (found["site_python_index_url"]["failure"], found["site_python_index_url"]["said"]) == (
        "http 404",
        "it answers 404",
    )
    assert found["refused"]["failure"] == "connection"
    assert found["links"]["failure"] == ""
    assert "geheim" not in json.dumps(list(found.values()))


def test_failures_in_words() -> None:
    assert reach.explain(urllib.error.URLError(socket.gaierror(-2, "x")))[0] == "dns"
    assert reach.explain(TimeoutError())[0] == "timeout"
    assert reach.explain(urllib.error.URLError(OSError("Tunnel connection failed: 407")))[1].endswith("407")


def test_weights_that_are_there(tmp_path) -> None:
    base = tmp_path / "lab--tiny"
    (base / "c1").mkdir(parents=True)
    (base / "c2.partial").mkdir()
    (base / "c2.partial/x").write_bytes(b"123")
    for name in ("a", "b"):
        (base / "c1" / name).write_bytes(b"12")
    os.utime(base / "c1/a", (946684800, 946684800))
    manifest = {"revision": "main", "files": {"a": {"size": 2}, "b": {"size": 2}}}
    (base / "c1.json").write_text(json.dumps(manifest))
    found = weights.look({"weights": {"dir": str(tmp_path), "repo": "lab/tiny"}})
    assert found == {
        "commits": [{"commit": "c1", "revision": "main", "files": 2, "good": 1, "bytes": 4}],
        "partial": 3,
    }
    assert weights.look({"weights": {"dir": str(tmp_path), "repo": ""}}) == {"commits": [], "partial": 0}


def test_who_asks_for_a_reboot(tmp_path, monkeypatch) -> None:
    assert machine.reboot_required() in ([], machine.reboot_required())
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / "there")
    (tmp_path / "there").touch()
    monkeypatch.setattr(machine, "read_text", lambda path: "linux-image\nlinux-base\nlinux-image\n")
    assert machine.reboot_required() == ["linux-base", "linux-image"]
    monkeypatch.setattr(machine, "read_text", lambda path: None)
    assert machine.reboot_required() == ["a package"]


def test_the_kernel_says_whether_its_clock_follows_another() -> None:
    assert machine.synchronised() in (True, False, None)
