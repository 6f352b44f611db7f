from __future__ import annotations

from pathlib import Path

import pytest

from provision.lab import container
from provision.lab.container import Spec
from provision.lab.host import LabHost


def test_a_host_is_read_back_as_it_was_written(spec: Spec, host: LabHost) -> None:
    assert container.read(host.directory) is None
    spec.write(host.directory)
    assert Spec.read(host.directory) == spec
    assert container.read(host.directory) == host


def test_how_a_host_is_booted(spec: Spec) -> None:
    argv = container.nspawn(spec, Path("/fleet/node-1"))
    assert {"--boot", "--keep-unit", "--register=no", "--machine=0f5ad557-0", "--hostname=node-1"} <= set(argv)
    assert "--bind=/fleet/node-1/fs:/.lab/fs" in argv
    assert "--bind=/cache:/var/cache/provision/uv" in argv
    assert "--bind-ro=/wheels:/wheels" in argv


def test_a_disk_is_furnished_once(spec: Spec, host: LabHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container.os, "chown", lambda *_: None)
    root, disk = tmp_path / "root", host.directory / "disk"
    disk.mkdir()
    (tmp_path / "resolv.conf").write_text("nameserver 10.0.0.53\n")
    (root / "etc").mkdir(parents=True)
    (root / "etc/resolv.conf").symlink_to(tmp_path / "outside")
    for name in ("ssh_host_ed25519_key", "ssh_host_ed25519_key.pub"):
        (host.directory / name).write_text(name)
    container.furnish(spec, host.directory, root)
    assert (root / "etc/resolv.conf").read_text() == "nameserver 10.0.0.53\n"
    assert not (tmp_path / "outside").exists()
    assert (root / "etc/ssh/ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert (root / "home/ops/.ssh/authorized_keys").read_text() == spec.authorized_key
    network = (root / "etc/systemd/network/10-host0.network").read_text()
    assert "Address=10.85.87.11/24\nGateway=10.85.87.1\n" in network
    assert "MTUBytes=1400" in network
    (root / "etc/hostname").write_text("changed on the host\n")
    container.furnish(spec, host.directory, root)
    assert (root / "etc/hostname").read_text() == "changed on the host\n"


def test_last_words_come_from_both_logs(host: LabHost) -> None:
    assert "printed nothing" in container.last_words(host)
    (host.directory / "supervisor.log").write_text("boots\n")
    (host.directory / "console.log").write_text("\n".join(f"line {number}" for number in range(20)))
    words = container.last_words(host).split()
    assert "boots" in words
    assert words[-2:] == ["line", "19"]
