from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from provision.cli.lab import lab
from provision.errors import LabError, UsageError
from provision.lab import fleet, login, power
from provision.lab.fleet import LabFleet
from provision.lab.host import LabHost


def call(*words: str) -> Result:
    return CliRunner().invoke(lab, words)


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch, host: LabHost, tmp_path: Path) -> LabFleet:
    found = LabFleet("0f5ad557", tmp_path, tmp_path, "10.85.87.1", {host.name: host})
    monkeypatch.setattr(fleet, "fleets", lambda: [found])
    monkeypatch.setattr(fleet, "inventories", lambda: [tmp_path, tmp_path / "b"])
    return found


def test_up_needs_hosts_from_somewhere() -> None:
    error = call("up").exception
    assert isinstance(error, UsageError)
    assert "--hosts 2" in str(error)


def test_ssh_hands_the_command_over(up: LabFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr("os.execvp", lambda _, argv: ran.append(argv))
    call("ssh", "node-1", "--", "sudo", "bash", "-c", "'echo -n x'")
    call("ssh", str(tmp_path), "node-1", "ls", "--all")
    login_ = login.ssh_command(tmp_path, up.hosts["node-1"])
    assert ran == [[*login_, "sudo", "bash", "-c", "'echo -n x'"], [*login_, "ls", "--all"]]


def test_a_host_that_is_not_there(up: LabFleet) -> None:
    error = call("ssh", "node-9").exception
    assert isinstance(error, LabError)
    assert "Hosts: node-1" in str(error)


def test_a_name_in_two_fleets_needs_the_inventory(up: LabFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "fleets", lambda: [up, up])
    assert isinstance(call("reboot", "node-1").exception, UsageError)


def test_an_inventory_without_a_fleet_says_how_to_start_it(up: LabFleet) -> None:
    error = call("status", "/elsewhere").exception
    assert isinstance(error, LabError)
    assert "provision lab up /elsewhere" in str(error)


def test_reboot_tells_hard_from_soft(up: LabFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(power, "reboot", lambda _fleet, _host, *, hard, report: asked.append(hard))
    assert call("reboot", "node-1").output == "node-1 answers again\n"
    call("reboot", str(up.inventory), "node-1", "--hard")
    assert asked == [False, True]


def test_faults_are_listed_applied_and_mended(up: LabFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    did: list[str] = []
    fault = SimpleNamespace(
        help="the fan stops", apply=lambda host: did.append(f"apply {host.name}"), mend=lambda _: did.append("mend")
    )
    monkeypatch.setitem(sys.modules, "provision.lab.hardware.faults", SimpleNamespace(FAULTS={"fan": fault}))
    assert "the fan stops" in call("break", "--help").output
    assert "Undo: provision lab mend node-1 fan" in call("break", "node-1", "fan").output
    call("mend", str(up.inventory), "node-1", "fan")
    assert did == ["apply node-1", "mend"]
    error = call("break", "node-1", "fire").exception
    assert isinstance(error, UsageError)
    assert "Known: fan" in str(error)
    assert isinstance(call("break", "node-1").exception, UsageError)


def test_down_does_not_guess(up: LabFleet) -> None:
    error = call("down").exception
    assert isinstance(error, UsageError)
    assert "--all" in str(error)
