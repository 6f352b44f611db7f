"""Units: the text that is written, and when a running process is not the wanted one."""

import pytest
from ansible.module_utils import provision_units as units
from ansible.module_utils.provision_host import HostError

CONTENT = "[Unit]\nDescription=x\n\n[Service]\nExecStart=/bin/true\n\n[Install]\nWantedBy=multi-user.target a.service\n"
ACTIVE = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled"}
ACTIVE |= {"NeedDaemonReload": "no", "InvocationID": "f00"}


def unit(**changes):
    base = {"name": "x.service", "content": CONTENT, "consumes": {"/etc/b": "22", "/etc/a": "11"}}
    return {**base, "enabled": True, "state": "started", "verify": True, **changes}


@pytest.fixture
def record(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "RECORDS", str(tmp_path))

    def write(*lines):
        (tmp_path / "x.service.consumed").write_text("".join(f"{line}\n" for line in lines))

    return write


def test_text_gains_hash_and_recorder_and_nothing_else():
    lines = units.full_text(unit()).splitlines()
    added = [line for line in lines if line not in CONTENT.splitlines()]
    assert [line.split("=")[0] for line in added] == ["Environment", "ExecStartPre"]
    assert lines.index(added[0]) == lines.index("[Service]") + 1
    assert "/etc/a /etc/b;" in added[1]
    assert [line for line in lines if line not in added] == CONTENT.splitlines()


def test_hash_follows_the_text_and_what_is_consumed():
    sha = units.unit_sha(units.full_text(unit()))
    assert len(sha) == 64
    assert units.unit_sha(units.full_text(unit(content=CONTENT.replace("true", "false")))) != sha
    assert units.unit_sha(units.full_text(unit(consumes={}))) != sha
    assert units.unit_sha(units.full_text(unit(consumes={"/etc/a": "99", "/etc/b": "22"}))) == sha


def test_a_unit_that_is_no_service_stays_as_it_is():
    timer = "[Timer]\nOnBootSec=1\n"
    assert units.full_text(unit(content=timer)) == timer
    assert units.stale(unit(content=timer), timer, ACTIVE) == []


def test_a_process_started_with_what_is_wanted_is_left_alone(record):
    text = units.full_text(unit())
    record(f"f00 {units.unit_sha(text)}", "00  /dev/null", "11  /etc/a", "22  /etc/b")
    assert units.stale(unit(), text, ACTIVE) == []


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "it runs another text of the unit"),
        (["bad {sha}", "11  /etc/a", "22  /etc/b"], "it runs another text of the unit"),
        (["f00 old", "11  /etc/a", "22  /etc/b"], "it runs another text of the unit"),
        (["f00 {sha}", "11  /etc/a", "33  /etc/b"], "/etc/b changed since it started"),
        (["f00 {sha}", "22  /etc/b"], "/etc/a changed since it started"),
    ],
)
def test_a_process_started_with_anything_else_is_stale(record, lines, reason):
    text = units.full_text(unit())
    record(*(line.format(sha=units.unit_sha(text)) for line in lines))
    assert units.stale(unit(), text, ACTIVE) == [reason]


def test_a_unit_is_enabled_by_all_its_links(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "UNIT_DIRECTORY", str(tmp_path))
    for target in ("multi-user.target", "a.service"):
        assert not units.is_enabled(unit(), ACTIVE)
        (tmp_path / f"{target}.wants").mkdir()
        (tmp_path / f"{target}.wants/x.service").symlink_to("/nowhere")
    assert units.is_enabled(unit(), ACTIVE)
    assert units.is_enabled(unit(content="[Service]\n"), ACTIVE)


def test_a_packaged_unit_is_judged_by_systemd():
    assert units.is_enabled(unit(content=None), ACTIVE)
    assert not units.is_enabled(unit(content=None), {**ACTIVE, "UnitFileState": "disabled"})
    assert units.is_enabled(unit(content=None), {**ACTIVE, "UnitFileState": "static"})
    assert units.stale(unit(content=None), "", ACTIVE) == []


def module_with(role_module, monkeypatch, seen):
    module = role_module("host", "systemd_units")
    monkeypatch.setattr(module, "observe", lambda name: {**ACTIVE, **seen})
    monkeypatch.setattr(module, "is_unread", lambda name: False)
    monkeypatch.setattr(module, "verify", lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("seen", "wanted", "actions"),
    [
        ({}, {}, []),
        ({"ActiveState": "failed", "SubState": "failed"}, {}, ["Started x.service."]),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, {}, ["Started x.service."]),
        ({"ActiveState": "activating", "SubState": "start"}, {}, []),
        ({"LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": ""}, {}, ["Started x.service."]),
        ({"UnitFileState": "disabled"}, {}, ["Enabled x.service."]),
        ({}, {"state": "stopped"}, ["Stopped x.service."]),
        ({"ActiveState": "inactive"}, {"state": "installed"}, []),
        ({}, {"enabled": False}, ["Disabled x.service."]),
    ],
)
def test_packaged_units(role_module, monkeypatch, seen, wanted, actions):
    module = module_with(role_module, monkeypatch, seen)
    changes = module.plan([unit(content=None, consumes={}, **wanted)], check_mode=True)
    assert [change.action for change in changes] == actions


def test_a_masked_unit_is_a_problem(role_module, monkeypatch):
    module = module_with(role_module, monkeypatch, {"LoadState": "masked"})
    with pytest.raises(HostError, match="unmask"):
        list(module.plan([unit(content=None, consumes={})], check_mode=False))


def test_names_that_a_unit_cannot_carry_are_refused(role_module, monkeypatch):
    module = module_with(role_module, monkeypatch, {})
    with pytest.raises(HostError, match="cannot stand in a unit"):
        list(module.plan([unit(consumes={"/etc/$(x)": ""})], check_mode=True))
