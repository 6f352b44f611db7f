"""The apt repository: signed, and tied together as NVIDIA's is."""

from __future__ import annotations

import subprocess

import pytest

from provision.lab.hardware import edge, packages, repository


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    directory = tmp_path_factory.mktemp("apt")
    repository.build(directory)
    return directory


def test_signed_by_the_key_beside_it_and_no_private_key_left(built, tmp_path):
    ring = tmp_path / "key.gpg"
    subprocess.run(["gpg", "--dearmor", "--output", ring, built / "key.asc"], check=True, capture_output=True)
    subprocess.run(["gpgv", "--keyring", ring, built / "InRelease"], check=True, capture_output=True)
    assert not [path for path in built.rglob("*") if path.is_dir() or "PRIVATE" in path.read_text(errors="ignore")]


def test_every_driver_version_is_whole(built):
    listed = (built / "Packages").read_text()
    for version in packages.DRIVERS:
        for name in ("nvidia-open", "nvidia-driver-cuda", "nvidia-fabricmanager", f"nvidia-driver-pinning-{version}"):
            assert f"./{name}_{version}-1_amd64.deb" in listed


def test_one_version_cannot_be_mixed_with_another():
    for package in packages.driver("580.126.20"):
        for tie in filter(None, package.depends.split(", ")):
            assert tie.endswith("(= 580.126.20-1)")


def test_install_writes_programs_units_and_diversions(tmp_path):
    for command in ("usr/sbin/modprobe", "usr/sbin/swapon", "usr/bin/dmesg"):
        (tmp_path / command).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / command).write_text("the real one\n")
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    edge.install(tmp_path)
    assert (tmp_path / "usr/sbin/modprobe.real").read_text() == "the real one\n"
    assert "kmod modprobe" in (tmp_path / "usr/sbin/modprobe").read_text()
    assert "/sbin/modprobe\n/sbin/modprobe.real\n:\n" in (tmp_path / "var/lib/dpkg/diversions").read_text()
    wanted = tmp_path / "usr/lib/systemd/system/sysinit.target.wants/lab-kernel.service"
    assert "run.py boot kernel" in wanted.read_text()
    there = {file.name for file in (tmp_path / edge.HOME).iterdir()}
    assert there == {"chrony.conf", *(file.name for file in edge.programs())}


def test_fingerprint_is_stable():
    assert edge.fingerprint() == edge.fingerprint()
