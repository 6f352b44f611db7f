from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import yaml

from provision.errors import LabError
from provision.lab import fleet, login, overlay
from provision.lab.container import Spec
from provision.lab.host import LabHost
from provision.lab.plan import HostPlan


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def stand(inventory: Path, spec: Spec) -> Path:
    """A fleet as `up` leaves it, on paper."""
    directory = fleet._top() / fleet._id(inventory)
    host = directory / "hosts" / spec.name
    host.mkdir(parents=True)
    spec.write(host)
    (directory / "inventory").write_text(str(inventory.resolve()))
    (directory / "network.json").write_text(json.dumps({"subnet": "10.85.87.0/24", "ports": {}}))
    (directory / "overlay").mkdir()
    return directory


def test_fleets_of_two_state_directories_never_meet(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fleet._id(tmp_path)
    assert first == fleet._id(tmp_path / "x" / "..")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert fleet._id(tmp_path) != first


def test_a_fleet_is_found_by_its_inventory_and_by_its_overlay(state: Path, tmp_path: Path, spec: Spec) -> None:
    assert fleet.find(tmp_path) is None
    directory = stand(tmp_path, spec)
    found = fleet.find(tmp_path)
    assert found is not None
    assert found == fleet.find(directory / "overlay")
    assert (found.gateway, list(found.hosts)) == ("10.85.87.1", ["node-1"])


def test_a_half_made_fleet_is_not_found_but_can_be_taken_down(state: Path, tmp_path: Path, spec: Spec) -> None:
    (stand(tmp_path, spec) / "overlay").rmdir()
    assert fleet.find(tmp_path) is None
    assert fleet.inventories() == [tmp_path.resolve()]
    assert fleet.down(tmp_path / "another") is False


def test_who_waited_while_the_fleet_was_taken_down_starts_afresh(state: Path) -> None:
    entered = []

    def wait() -> None:
        with fleet._locked("0f5ad557", lambda _: None) as directory:
            entered.append(directory.stat().st_ino)

    with fleet._locked("0f5ad557", lambda _: None) as directory:
        before = directory.stat().st_ino
        other = threading.Thread(target=wait)
        other.start()
        directory.rename(directory.with_name("moved"))
    other.join(timeout=10)
    assert entered
    assert entered[0] != before


def test_a_directory_that_is_moved_away_while_it_is_opened_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "fleet"
    directory.mkdir()
    make = os.mkdir

    def moved_after(path: Path, mode: int) -> None:
        try:
            make(path, mode)
        except FileExistsError:
            directory.rename(tmp_path / "moved")
            raise

    monkeypatch.setattr(os, "mkdir", moved_after)
    handle = fleet._open(directory)
    assert fleet._still_there(directory, handle)
    directory.rename(tmp_path / "moved again")
    assert not fleet._still_there(directory, handle)
    os.close(handle)


def test_a_host_keeps_its_hardware(host: LabHost) -> None:
    with pytest.raises(LabError, match="lab down"):
        fleet._refuse_other_hardware(host, HostPlan(host.name, "4xa100-80"))


@pytest.mark.parametrize("group", [None, "lab"])
def test_the_overlay_reaches_the_hosts(host: LabHost, tmp_path: Path, group: str | None) -> None:
    world = overlay.world(tmp_path, "http://10.85.87.1:8080/apt", "http://10.85.87.1:8081")
    for _ in range(2):
        overlay.write(tmp_path, [host], world, group)
    variables = yaml.safe_load((tmp_path / "overlay/host_vars/node-1.yml").read_text())
    tree = yaml.safe_load((tmp_path / "overlay/hosts.yml").read_text())
    assert variables["ansible_host"] == variables["ray_address"] == "10.85.87.11"
    assert f"-o UserKnownHostsFile={tmp_path}/known_hosts" in variables["ansible_ssh_common_args"]
    assert variables.get("hardware_profile") == (host.profile if group else None)
    hosts = {"node-1": None}
    assert tree == ({"serving": {"children": {"lab": {"hosts": hosts}}}} if group else {"all": {"hosts": hosts}})


def test_keys_are_made_once_and_trusted_by_name_and_address(host: LabHost, tmp_path: Path) -> None:
    login.make_host_key(host.directory, host.name)
    private = (host.directory / login.HOST_KEY).read_text()
    login.make_host_key(host.directory, host.name)
    assert (host.directory / login.HOST_KEY).read_text() == private
    login.trust(tmp_path, [host])
    public = (host.directory / f"{login.HOST_KEY}.pub").read_text().split()
    assert (tmp_path / "known_hosts").read_text() == f"node-1,10.85.87.11 {public[0]} {public[1]}\n"
