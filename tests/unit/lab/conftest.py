from __future__ import annotations

from pathlib import Path

import pytest

from provision.lab.container import Bind, Spec
from provision.lab.host import LabHost


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return Spec(
        name="node-1",
        machine="0f5ad557-0",
        group="0f5ad557/hosts/node-1",
        profile="8xh20-96",
        address="10.85.87.11",
        prefix=24,
        gateway="10.85.87.1",
        bridge="pl-0f5ad557",
        mtu=1400,
        base=str(tmp_path / "base"),
        disk_size=1 << 30,
        memory=None,
        authorized_key="ssh-ed25519 KEY fleet\n",
        binds=(Bind("/cache", "/var/cache/provision/uv", writable=True), Bind("/wheels", "/wheels")),
    )


@pytest.fixture
def host(spec: Spec, tmp_path: Path) -> LabHost:
    directory = tmp_path / "hosts" / spec.name
    directory.mkdir(parents=True)
    return spec.host(directory)
