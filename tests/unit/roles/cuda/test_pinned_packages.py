"""Packages in one exact version: which are wrong, which are held, and what is let go."""

from pathlib import Path

import pytest
from ansible.module_utils.provision_apt import Package
from ansible.module_utils.provision_host import HostError

NCCL = {"name": "nccl", "packages": ["libnccl2=2.28.9-1+cuda13.0", "libnccl-dev=2.28.9-1+cuda13.0"], "family": []}
TOOLKIT = {"name": "cuda-toolkit", "packages": ["cuda-toolkit-13-0=13.0.3-1"], "family": ["cuda-*-[0-9]*-[0-9]*"]}
RIGHT = {
    "libnccl2": Package("2.28.9-1+cuda13.0", held=True),
    "libnccl-dev": Package("2.28.9-1+cuda13.0", held=True, depends="libnccl2 (= 2.28.9-1+cuda13.0)"),
    "cuda-toolkit-13-0": Package("13.0.3-1", held=True, depends="cuda-nvcc-13-0 (>= 13.0.88)"),
    "cuda-nvcc-13-0": Package("13.0.88-1", held=True),
    "cuda-drivers": Package("580.126.20-1", held=False),
}


@pytest.fixture
def pinned(role_module, monkeypatch, tmp_path):
    module = role_module("cuda", "pinned_packages")
    module.packages = dict(RIGHT)
    monkeypatch.setattr(module, "installed", lambda: module.packages)
    monkeypatch.setattr(module, "PINS", str(tmp_path))
    (tmp_path / "provision-nccl").write_text(module.pin_text(module.versions(NCCL)))
    (tmp_path / "provision-cuda-toolkit").write_text(module.pin_text(module.versions(TOOLKIT)))
    for path in tmp_path.iterdir():
        path.chmod(0o644)
    return module


def planned(pinned, *sets):
    return list(pinned.plan(list(sets or (TOOLKIT, NCCL)), "/source", 1))


def actions(pinned, *sets):
    return [change.action for change in planned(pinned, *sets)]


def test_a_host_that_has_all_is_left_alone(pinned):
    assert actions(pinned) == []


def test_a_bare_host_is_told_all_of_it(pinned, tmp_path):
    for path in tmp_path.iterdir():
        path.unlink()
    pinned.packages = {"libc6": Package("2.36", held=False)}
    assert actions(pinned) == [
        f"Wrote {tmp_path}/provision-cuda-toolkit.",
        f"Wrote {tmp_path}/provision-nccl.",
        "Installed cuda-toolkit-13-0, libnccl-dev, libnccl2.",
        "Held the packages of cuda-toolkit against upgrades.",
        "Held the packages of nccl against upgrades.",
    ]


def test_the_pin_holds_each_package_at_its_version(pinned, tmp_path):
    text = (tmp_path / "provision-nccl").read_text()
    assert text.split("\n\n")[1] == "Package: libnccl-dev\nPin: version 2.28.9-1+cuda13.0\nPin-Priority: 1001\n"


@pytest.mark.parametrize(
    ("name", "changed", "expected"),
    [
        (
            "libnccl2",
            {"version": "2.29.7-1+cuda13.2"},
            ["Changed libnccl2 to 2.28.9-1+cuda13.0.", "Held the packages of nccl against upgrades."],
        ),
        (
            "libnccl-dev",
            {"whole": False},
            ["Changed libnccl-dev to 2.28.9-1+cuda13.0.", "Held the packages of nccl against upgrades."],
        ),
        ("libnccl2", {"held": False}, ["Held the packages of nccl against upgrades."]),
        ("cuda-nvcc-13-0", {"held": False}, ["Held the packages of cuda-toolkit against upgrades."]),
    ],
)
def test_what_was_changed_by_hand_is_named_and_nothing_else(pinned, name, changed, expected):
    pinned.packages[name] = pinned.packages[name]._replace(**changed)
    assert actions(pinned) == expected


def test_a_component_removed_by_force_is_brought_back(pinned):
    del pinned.packages["cuda-nvcc-13-0"]
    change, hold = planned(pinned)
    assert (change.action, change.after) == ("Installed cuda-nvcc-13-0.", "cuda-nvcc-13-0: installed\n")
    assert hold.action == "Held the packages of cuda-toolkit against upgrades."  # foretold, too: it is back without one


def test_a_driver_is_no_part_of_the_toolkit(pinned):
    assert "cuda-drivers" not in pinned.members(TOOLKIT, pinned.packages, {"cuda-toolkit-13-0"})


def test_what_is_no_longer_wanted_is_let_go_once(pinned, tmp_path):
    retired = {**TOOLKIT, "packages": []}
    changes = planned(pinned, retired, NCCL)
    assert [change.action for change in changes] == [
        "Released the packages of cuda-toolkit for upgrades.",
        f"Removed {tmp_path}/provision-cuda-toolkit.",
    ]
    assert changes[0].after == "cuda-nvcc-13-0: free\ncuda-toolkit-13-0: free\n"
    (tmp_path / "provision-cuda-toolkit").unlink()
    assert actions(pinned, retired, NCCL) == []  # a hold without our pin is somebody else's


def test_packages_need_a_version(pinned):
    with pytest.raises(HostError, match=r"nccl: libnccl2 names no version; write it as libnccl2=1\.2\.3-1"):
        actions(pinned, {**NCCL, "packages": ["libnccl2"]})


def test_nothing_is_installed_without_the_drivers_repository(pinned, tmp_path):
    with pytest.raises(HostError, match=r"the stage driver writes it.*--stage driver,cuda"):
        pinned.install_from(str(tmp_path / "none"), {"libnccl2": "2"}, 1)
    Path(tmp_path, "source").touch()
    pinned.install = lambda *asked: asked
    assert pinned.install_from(str(tmp_path / "source"), {"libnccl2": "2"}, 1) is None
