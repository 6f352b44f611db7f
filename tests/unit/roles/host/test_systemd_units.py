"""Units: the text that is written, and when a running process is not the wanted one."""

import pytest
from ansible.module_utils import provision_units as units
from ansible.module_utils.provision_host import HostError, Ran, sha256_text

CONTENT = "[Unit]\nDescription=x\n\n[Service]\nExecStart=/bin/true\n\n[Install]\nWantedBy=multi-user.target a.service\n"
ACTIVE = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled"}
ACTIVE |= {"NeedDaemonReload": "no", "InvocationID": "f00", "FragmentPath": "/usr/lib/systemd/system/x.service"}


def unit(**changes):
    base = {"name": "x.service", "content": CONTENT, "consumes": {"/etc/b": "22", "/etc/a": "11"}}
    return {**base, "enabled": True, "state": "started", "verify": True, "by_package": False, **changes}


@pytest.fixture(autouse=True)
def host(tmp_path, monkeypatch):
    """A host whose systemd keeps its units and its records in folders of the test's."""
    monkeypatch.setattr(units, "RECORDS", str(tmp_path / "run"))
    monkeypatch.setattr(units, "UNIT_DIRECTORY", str(tmp_path / "units"))
    monkeypatch.setattr(units, "DROP_IN_ROOTS", (str(tmp_path / "units"), str(tmp_path / "control")))
    (tmp_path / "run").mkdir()
    (tmp_path / "units").mkdir()
    return tmp_path


@pytest.fixture
def record(host):
    def write(*lines):
        (host / "run/x.service.consumed").write_text("".join(f"{line}\n" for line in lines))

    return write


def own(text):
    """The record's line for the unit's file."""
    return f"{sha256_text(text)}  {units.UNIT_DIRECTORY}/x.service"


def test_text_gains_hash_and_recorder_and_nothing_else():
    lines = units.full_text(unit()).splitlines()
    added = [line for line in lines if line not in CONTENT.splitlines()]
    assert [line.split("=")[0] for line in added] == ["Environment", "ExecStartPre"]
    assert lines.index(added[0]) == lines.index("[Service]") + 1
    assert f"/dev/null {units.UNIT_DIRECTORY}/x.service /etc/a /etc/b " in added[1]
    assert f"{units.UNIT_DIRECTORY}/x.service.d/*.conf" in added[1]
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
    record(f"f00 {units.unit_sha(text)}", "00  /dev/null", own(text), "11  /etc/a", "22  /etc/b")
    assert units.stale(unit(), text, ACTIVE) == []


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "it runs another text of the unit"),
        (["bad {sha}", "{own}", "11  /etc/a", "22  /etc/b"], "it runs another text of the unit"),
        (["f00 old", "{own}", "11  /etc/a", "22  /etc/b"], "it runs another text of the unit"),
        (["f00 {sha}", "e0  {path}", "11  /etc/a", "22  /etc/b"], "it runs another text of the unit"),
        (["f00 {sha}", "{own}", "11  /etc/a", "33  /etc/b"], "/etc/b changed since it started"),
        (["f00 {sha}", "{own}", "22  /etc/b"], "/etc/a changed since it started"),
        (["f00 {sha}", "{own}", "11  /etc/a", "22  /etc/b", "44  /x.d/a b.conf"], "it was started with /x.d/a b.conf"),
    ],
)
def test_a_process_started_with_anything_else_is_stale(record, lines, reason):
    text = units.full_text(unit())
    known = {"sha": units.unit_sha(text), "own": own(text), "path": f"{units.UNIT_DIRECTORY}/x.service"}
    record(*(line.format(**known) for line in lines))
    assert units.stale(unit(), text, ACTIVE) == [reason]


def test_a_unit_is_enabled_by_all_its_links_and_disabled_by_none(host):
    for target in ("multi-user.target", "a.service"):
        assert not units.is_enabled(unit(), ACTIVE)
        (host / f"units/{target}.wants").mkdir()
        (host / f"units/{target}.wants/x.service").symlink_to(host / "units/x.service")
        assert units.is_enabled(unit(enabled=False), ACTIVE)
    assert units.is_enabled(unit(), ACTIVE)
    (host / "units/x.service").symlink_to("/dev/null")  # masked, which is another matter
    assert units.is_enabled(unit(), ACTIVE)
    assert units.is_enabled(unit(content="[Service]\n"), ACTIVE)


def test_a_link_to_what_a_package_brings_is_made_anew(standing, host):
    link = host / "units/a.service.wants/x.service"
    link.unlink()
    link.symlink_to("/lib/systemd/system/x.service")
    assert told(standing, unit()) == [("Enabled x.service.", "none")]
    for change in standing.plan([unit()], True):
        change.act()
    assert standing.ran == ["systemctl reenable x.service"]


def test_what_a_package_has_for_sysv_is_enabled_with_it(systemd_units):
    systemd_units.seen |= {"UnitFileState": "disabled"}
    for change in systemd_units.plan([unit(content=None, consumes={})], True):
        change.act()
    assert systemd_units.ran == ["systemctl enable x.service"]


def test_a_packaged_unit_is_judged_by_systemd():
    assert units.is_enabled(unit(content=None), ACTIVE)
    assert not units.is_enabled(unit(content=None), {**ACTIVE, "UnitFileState": "disabled"})
    assert units.is_enabled(unit(content=None), {**ACTIVE, "UnitFileState": "static"})
    assert units.stale(unit(content=None), "", ACTIVE) == []


@pytest.fixture
def systemd_units(role_module, monkeypatch, host):
    """The module on a host where systemd answers what the test says, and does nothing."""
    module = role_module("host", "systemd_units")
    monkeypatch.setattr(module, "UNIT_DIRECTORY", units.UNIT_DIRECTORY)
    module.seen, module.ran, module.asked = dict(ACTIVE), [], []
    monkeypatch.setattr(units, "observe", lambda names: module.asked.append(names) or dict.fromkeys(names, module.seen))
    monkeypatch.setattr(module, "run", lambda argv: module.ran.append(" ".join(argv)))
    monkeypatch.setattr(module, "act_or_explain", lambda verb, name: module.ran.append(f"{verb} {name}"))
    monkeypatch.setattr(module, "verify", lambda *_: None)
    return module


def told(module, *wanted, check_mode=True):
    return [(change.action, change.effect) for change in module.plan(list(wanted), check_mode)]


@pytest.mark.parametrize(
    ("seen", "wanted", "actions"),
    [
        ({}, {}, []),
        ({"ActiveState": "failed", "SubState": "failed"}, {}, ["Started x.service."]),
        ({"ActiveState": "activating", "SubState": "auto-restart"}, {}, ["Started x.service."]),
        ({"ActiveState": "activating", "SubState": "auto-restart-queued"}, {}, ["Started x.service."]),
        ({"ActiveState": "activating", "SubState": "start"}, {}, []),
        ({"ActiveState": "activating", "SubState": "start-pre"}, {}, []),
        ({"ActiveState": "activating", "SubState": "start-pre", "NRestarts": "3"}, {}, ["Started x.service."]),
        ({"LoadState": "not-found", "ActiveState": "inactive", "UnitFileState": ""}, {}, ["Started x.service."]),
        ({"UnitFileState": "disabled"}, {}, ["Enabled x.service."]),
        ({}, {"state": "stopped"}, ["Stopped x.service."]),
        ({"ActiveState": "inactive"}, {"state": "installed"}, []),
        ({}, {"enabled": False}, ["Disabled x.service."]),
    ],
)
def test_packaged_units(systemd_units, seen, wanted, actions):
    systemd_units.seen |= seen
    assert [action for action, _ in told(systemd_units, unit(content=None, consumes={}, **wanted))] == actions


def test_a_masked_unit_is_a_problem(systemd_units):
    systemd_units.seen |= {"LoadState": "masked"}
    with pytest.raises(HostError, match="unmask"):
        told(systemd_units, unit(content=None, consumes={}), check_mode=False)


def test_names_that_a_unit_cannot_carry_are_refused(systemd_units):
    with pytest.raises(HostError, match="cannot stand in a unit"):
        told(systemd_units, unit(consumes={"/etc/$(x)": ""}))


@pytest.fixture
def standing(systemd_units, host, record):
    """A unit that is in place, enabled, and runs with what is wanted."""
    text = units.full_text(unit())
    (host / "units/x.service").write_text(text)
    for target in ("multi-user.target", "a.service"):
        (host / f"units/{target}.wants").mkdir()
        (host / f"units/{target}.wants/x.service").symlink_to("../x.service")
    record(f"f00 {units.unit_sha(text)}", own(text), "11  /etc/a", "22  /etc/b")
    systemd_units.seen |= {"FragmentPath": str(host / "units/x.service")}
    return systemd_units


@pytest.mark.parametrize(
    ("seen", "verb"),
    [
        ({"ActiveState": "inactive", "SubState": "dead", "NRestarts": "3"}, "start"),
        ({"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "1"}, "restart"),
        ({"ActiveState": "activating", "SubState": "start-pre", "NRestarts": "3"}, "restart"),
    ],
)
def test_a_pause_before_the_next_start_is_cut_short(standing, monkeypatch, seen, verb):
    ran = []
    monkeypatch.setattr(units, "act_or_explain", lambda *words: ran.append(words))
    standing.seen |= seen
    for change in standing.plan([unit()], check_mode=False):
        change.act()
    assert ran == [(verb, "x.service")]


def test_all_units_are_asked_for_at_once(standing):
    assert told(standing, unit(), unit(name="y.service", content=None, consumes={})) == []
    assert standing.asked == [["x.service", "y.service"]]


def mask(host):
    (host / "units/x.service").unlink()
    (host / "units/x.service").symlink_to("/dev/null")


def override(host):
    (host / "control/x.service.d").mkdir(parents=True)
    (host / "control/x.service.d/50-x.conf").write_text("[Service]\nNice=5\n")


@pytest.mark.parametrize(
    ("drift", "seen", "expected"),
    [
        (lambda host: (host / "units/x.service").write_text("x"), {}, [("Rewrote {unit}.", "reload")]),
        (lambda host: (host / "units/x.service").chmod(0o600), {}, [("Set the mode of {unit} to 0644.", "none")]),
        (mask, {"LoadState": "masked"}, [("Put a file in the place of the link {unit}.", "reload")]),
        (override, {}, [("Removed {host}/control/x.service.d/50-x.conf.", "reload")]),
        (lambda host: None, {"NeedDaemonReload": "yes"}, [("Had systemd read x.service again.", "reload")]),
        (lambda host: None, {"FragmentPath": "/usr/lib/x"}, [("Had systemd read x.service again.", "reload")]),
        (
            lambda host: (host / "run/x.service.consumed").unlink(),
            {},
            [("Restarted x.service; it runs another text of the unit.", "restart")],
        ),
        (lambda host: (host / "units/a.service.wants/x.service").unlink(), {}, [("Enabled x.service.", "none")]),
        (lambda host: None, {"ActiveState": "failed", "SubState": "failed"}, [("Started x.service.", "none")]),
    ],
)
def test_what_drifted_is_told_with_its_effect(standing, host, drift, seen, expected):
    drift(host)
    standing.seen |= seen
    words = {"unit": host / "units/x.service", "host": host}
    assert told(standing, unit()) == [(sentence.format(**words), effect) for sentence, effect in expected]


def test_a_written_text_is_read_at_once_and_once(standing, host):
    (host / "units/x.service").write_text("x")
    standing.seen |= {"NeedDaemonReload": "yes"}
    for change in standing.plan([unit()], check_mode=False):
        change.act()
    assert standing.ran == ["systemctl daemon-reload"]


def test_what_its_package_starts_is_foretold_as_such(standing):
    standing.seen |= {"LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead", "UnitFileState": ""}
    assert told(standing, unit(content=None, consumes={}, by_package=True)) == []
    unwanted = unit(content=None, consumes={}, by_package=True, state="stopped", enabled=False)
    assert told(standing, unwanted) == [("Disabled x.service.", "none")]
    assert told(standing, unit(content=None, consumes={})) == [("Started x.service.", "none")]
    with pytest.raises(HostError, match="There is no unit"):
        list(standing.plan([unit(content=None, consumes={}, by_package=True)], check_mode=False))


def test_what_overrides_a_unit_goes_with_its_directory(standing, host):
    override(host)
    for change in standing.plan([unit()], check_mode=False):
        change.act()
    assert not (host / "control/x.service.d").exists()
    override(host)
    (host / "control/x.service.d/README").touch()
    for change in standing.plan([unit()], check_mode=False):
        change.act()
    assert [path.name for path in (host / "control/x.service.d").iterdir()] == ["README"]


def test_an_absent_unit_leaves_nothing(standing, host):
    expected = [
        ("Stopped x.service.", "restart"),
        ("Disabled x.service.", "none"),
        (f"Removed {host}/units/x.service.", "none"),
    ]
    assert told(standing, unit(state="absent")) == expected
    for change in standing.plan([unit(state="absent")], check_mode=False):
        change.act()
    assert standing.ran == ["systemctl stop x.service", "systemctl daemon-reload"]
    standing.seen |= {"ActiveState": "inactive", "LoadState": "not-found", "FragmentPath": ""}
    assert told(standing, unit(state="absent")) == []


def test_absent_units_stop_before_others_start_and_in_the_reverse_order(standing, host):
    wanted = [
        unit(name="new.service"),
        *(unit(name=f"{name}.service", state="absent") for name in ("engine", "watcher")),
    ]
    actions = [action for action, _ in told(standing, *wanted)]
    stopped = [action for action in actions if action.startswith("Stopped")]
    assert stopped == ["Stopped watcher.service.", "Stopped engine.service."]
    assert max(map(actions.index, stopped)) < actions.index(f"Wrote {host}/units/new.service.")


def test_a_unit_whose_file_is_gone_is_stopped_all_the_same(standing, host):
    (host / "units/x.service").unlink()
    assert told(standing, unit(state="absent"))[0] == ("Stopped x.service.", "restart")


def test_texts_in_place_are_not_verified_again(host, monkeypatch):
    asked = []
    monkeypatch.setattr(units, "run", lambda argv, check: asked.append(argv[0]) or Ran(0, "", ""))
    units.verify([unit()], check_mode=False)
    assert asked == ["systemd-analyze"]
    (host / "units/x.service").write_text(units.full_text(unit()))
    units.verify([unit()], check_mode=False)
    assert asked == ["systemd-analyze"]


def test_properties_of_several_units_are_told_apart(monkeypatch):
    shown = "LoadState=loaded\nActiveState=active\n\nLoadState=not-found\nActiveState=inactive\n"
    monkeypatch.setattr(units, "run", lambda *_, **__: Ran(0, shown, ""))
    gone = {"LoadState": "not-found", "ActiveState": "inactive"}
    assert units.observe(["a", "b"])["b"] == gone
    monkeypatch.setattr(units, "TOGETHER", ["a", "b"])
    assert units.observe(["b"]) == {"b": gone}
