"""The programs at the edge: modules, swap, the packages' own script."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root loads modules and switches swap")


def swap_file(tmp_path: Path, *, mode: int = 0o600, signature: bytes = b"SWAPSPACE2", sparse: bool = False) -> Path:
    path = tmp_path / "swapfile"
    path.write_bytes(b"\1" * 4086 + signature + (b"" if sparse else b"\1" * 4096 * 15))
    if sparse:
        os.truncate(path, 4096 * 16)
    path.chmod(mode)
    return path


def test_the_driver_is_not_there_until_it_is_installed(bare):
    host = bare("8xh20-96")
    done = host.run("kmod", "nvidia", version="modprobe")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("modprobe: FATAL: Module nvidia not found in directory /lib/modules/")
    host.run("driver", "installed", version="580.126.20")
    assert host.read()["driver"] | {"loaded_flavour": ""} == {
        "installed": "580.126.20",
        "flavour": "open",
        "loaded": None,
        "loaded_flavour": "",
    }
    host.run("driver", "removed", version="580.95.05")
    assert host.read()["driver"]["installed"] == "580.126.20"
    host.run("driver", "removed", version="580.126.20")
    assert host.read()["driver"]["installed"] is None


def test_lsmod_shows_who_uses_whom(ready):
    host = ready()
    lines = host.run("kmod", version="lsmod").stdout.splitlines()
    assert lines[0] == "Module                  Size  Used by"
    assert lines[1] == "nvidia              14381056  0"


@needs_root
def test_a_module_in_use_stays(ready, tmp_path):
    host = ready()
    with host.change() as hardware:
        hardware["modules"].append("nvidia_uvm")
    done = host.run("kmod", "nvidia", version="rmmod")
    assert (done.returncode, done.stderr) == (1, "rmmod: ERROR: Module nvidia is in use by: nvidia_uvm\n")


def test_modinfo_tells_the_version_on_the_disk(ready):
    assert ready().run("kmod", "-F", "version", "nvidia", version="modinfo").stdout == "580.159.04\n"


@needs_root
def test_swap_goes_on_once_and_off(bare, tmp_path):
    host, path = bare("8xh20-96"), swap_file(tmp_path)
    assert host.run("swap", "-p", "5", str(path), version="swapon").returncode == 0
    assert host.read()["swaps"] == [{"path": str(path), "size_kib": 60, "priority": 5}]
    again = host.run("swap", str(path), version="swapon")
    assert again.stderr == f"swapon: {path}: swapon failed: Device or resource busy\n"
    assert host.run("swap", str(path), version="swapoff").returncode == 0
    assert host.read()["swaps"] == []


@needs_root
@pytest.mark.parametrize(
    ("file", "status", "said"),
    [
        ({"signature": b"nothing   "}, 8, "read swap header failed"),
        ({"sparse": True}, 4, "skipping - it appears to have holes."),
        ({"mode": 0o644}, 0, "insecure permissions 0644, 0600 suggested."),
    ],
)
def test_swapon_looks_at_the_file(bare, tmp_path, file, status, said):
    host, path = bare("8xh20-96"), swap_file(tmp_path, **file)
    done = host.run("swap", str(path), version="swapon")
    assert (done.returncode, done.stderr) == (status, f"swapon: {path}: {said}\n")


def test_dmesg_is_the_hosts_own(ready):
    said = ready().run("dmesg", version="dmesg").stdout
    assert "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (root@node-1)\n" in said
