"""`provision preflight`: what it shows, and what it means for a script."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from provision.cli import preflight as command
from provision.inventory.model import Host, Replica
from provision.plan.decode import decode
from provision.preflight import Finding, Severity, Sight
from provision.preflight.facts import Facts
from provision.ssh.trouble import Trouble

DOCUMENT = json.loads((Path(__file__).parents[1] / "examples/preflight/h20.json").read_text())
A, B = (Host(name, f"10.0.0.{name}", None, None, None, (), {}, ()) for name in ("a", "b"))
PAIR = Replica("r1", (A, B))
SOUND, SOUND_B = (Sight(host, PAIR, decode(DOCUMENT, Facts), seconds=1.5) for host in (A, B))
LOST = Sight(B, PAIR, trouble=Trouble("timeout", "It did not answer.", "Is it up?", unreachable=True))
DENIED = Sight(B, PAIR, trouble=Trouble("no_sudo", "No sudo.", "Allow it."))
FINE = Finding("dns", Severity.OK, "name servers 10.0.0.53", hosts=("a",))
WRONG = Finding("fabric", Severity.WARNING, "Fabric Manager [x] is stopped.", "Start it.", ("a",))
BLOCK = Finding("ports", Severity.BLOCKER, "port 8000 is taken.", "End it.", ("a",))
GONE = Finding("unreachable", Severity.BLOCKER, "It did not answer.", "Is it up?", ("b",))
LOGIN = Finding("login", Severity.BLOCKER, "No sudo.", "Allow it.", ("b",))


@pytest.fixture
def preflight(monkeypatch):
    def call(*arguments, sights=(SOUND,), found=(FINE,)):
        monkeypatch.setattr(command, "load", lambda _inventory, _lab, _asked: SimpleNamespace())
        monkeypatch.setattr(command, "select", lambda _fleet, _limit: ())
        monkeypatch.setattr(command, "look_at", lambda _fleet, _hosts: list(sights))
        monkeypatch.setattr(command, "judge", lambda _fleet, _sights: list(found))
        return CliRunner().invoke(command.preflight, ["inventory/prod", *arguments], standalone_mode=False)

    return call


def test_a_sound_host(preflight) -> None:
    done = preflight()
    assert done.return_value == 0
    assert "a     debian 12  23.5 GiB  8 \N{MULTIPLICATION SIGN} H20  580.126.20  9 of 9 up  unknown, " in done.stdout
    assert done.stdout.splitlines()[1].endswith("  ok")
    assert "1 host looked at in 0.0 s: nothing is in the way of a bootstrap." in done.stdout
    assert "name servers" not in done.stdout
    assert "ok      a dns: name servers 10.0.0.53" in preflight("--all").stdout


def test_findings_and_what_to_do(preflight) -> None:
    done = preflight(found=[BLOCK, WRONG, FINE])
    assert done.return_value == 1
    assert "blocker a ports: port 8000 is taken.\n        End it.\n" in done.stdout
    assert "warning a fabric: Fabric Manager [x] is stopped." in done.stdout
    assert "1 blocker, 1 warning" in done.stdout.splitlines()[1]
    assert "a bootstrap would not go well (1 blocker, 1 warning)." in done.stdout


def test_the_same_on_two_hosts_is_told_once(preflight) -> None:
    other = Finding(WRONG.check, WRONG.severity, WRONG.message, WRONG.todo, ("b",))
    done = preflight(sights=[SOUND, SOUND_B], found=[WRONG, other])
    assert done.stdout.count("is stopped") == 1
    assert "warning a, b fabric:" in done.stdout


@pytest.mark.parametrize(
    ("sights", "found", "code"),
    [
        ([SOUND], [WRONG], 0),
        ([SOUND, LOST], [GONE, WRONG], 3),
        ([SOUND, LOST], [GONE, BLOCK], 1),
        ([SOUND, DENIED], [LOGIN], 1),
    ],
)
def test_exit_codes(preflight, sights, found, code) -> None:
    assert preflight(sights=sights, found=found).return_value == code


def test_a_host_that_does_not_answer(preflight) -> None:
    done = preflight(sights=[SOUND, LOST], found=[GONE])
    assert "b     -" in done.stdout
    assert "blocker b unreachable: It did not answer.\n        Is it up?" in done.stdout
    assert "1 host looked at in 0.0 s, 1 not:" in done.stdout


def test_json(preflight) -> None:
    told = json.loads(preflight("--json", sights=[SOUND, LOST], found=[GONE, WRONG, FINE]).stdout)
    assert (told["version"], told["exit_code"]) == (1, 3)
    assert told["counts"] == {"ok": 1, "note": 0, "warning": 1, "blocker": 1}
    assert told["findings"][0] == {
        "check": "unreachable", "severity": "blocker", "message": "It did not answer.", "todo": "Is it up?", "hosts": ["b"],
    }  # fmt: skip
    first, second = told["hosts"]
    assert first["facts"]["nvidia"]["loaded"] == "580.126.20"
    assert (second["reachable"], second["error"], second["facts"]) == (False, "It did not answer.", None)
