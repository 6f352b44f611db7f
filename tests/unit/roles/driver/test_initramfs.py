"""Initial RAM disks: built again when they are older than what they hold."""

import os

import pytest


@pytest.fixture
def disks(role_module, monkeypatch, tmp_path):
    module = role_module("driver", "initramfs")
    monkeypatch.setattr(module, "BOOT", tmp_path)
    monkeypatch.setattr(module, "kernels", lambda: ["6.1.0-30-amd64", "6.1.0-31-amd64"])
    module.ran = []
    monkeypatch.setattr(module, "run", module.ran.append)
    (tmp_path / "initrd.img-6.1.0-31-amd64").touch()
    (tmp_path / "nouveau.conf").write_text("blacklist nouveau\n")
    return module


def built(disks, place, seconds):
    """Let the disk be this much younger than the file; the change of its times counts for the file."""
    now = os.stat(place / "nouveau.conf").st_ctime + seconds
    os.utime(place / "initrd.img-6.1.0-31-amd64", (now, now))
    return list(disks.plan([str(place / "nouveau.conf")]))


def test_a_disk_younger_than_its_files_is_left_alone(disks, tmp_path):
    assert built(disks, tmp_path, 1) == []


def test_a_disk_older_than_a_file_is_built_again(disks, tmp_path):
    (change,) = built(disks, tmp_path, -1)
    assert change.action == "Built the initial RAM disk of Linux 6.1.0-31-amd64 again."
    change.act()
    assert disks.ran == [["update-initramfs", "-u", "-k", "6.1.0-31-amd64"]]


def test_a_file_that_is_about_to_be_written_counts(disks):
    (change,) = disks.plan(["/nowhere/nouveau.conf"])
    assert change.before == "older than /nowhere/nouveau.conf\n"


def test_a_host_without_disks_needs_none(disks, tmp_path):
    (tmp_path / "initrd.img-6.1.0-31-amd64").unlink()
    assert list(disks.plan(["/nowhere/nouveau.conf"])) == []
