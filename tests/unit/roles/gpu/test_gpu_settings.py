"""Settings of GPUs: what differs, from what the cards show."""

import json
from pathlib import Path

import pytest
from ansible.module_utils import provision_gpu
from ansible.module_utils.provision_host import HostError, Ran

NOTHING = {"graphics": {}, "memory": {}, "quiet": []}
WANTED = {
    "locked_clocks": {},
    "memory_clocks": {},
    "application_clocks": {},
    "power_limit": {},
    "compute_mode": "Default",
    "ecc": True,
    "mig": False,
}
WANTED |= {"expected": {"count": 2, "watts": 500}, "restored_by": ""}
IDLE = {"clocks.sm": "345", "utilization.gpu": "0"}
CARD = dict.fromkeys(provision_gpu.FIELDS, "Not Active") | {
    "index": "3",
    "persistence_mode": "Enabled",
    "compute_mode": "Default",
    "ecc.mode.current": "Enabled",
    "ecc.mode.pending": "Enabled",
    "mig.mode.current": "Disabled",
    "mig.mode.pending": "Disabled",
    "power.limit": "500.00",
    "power.default_limit": "500.00",
    "power.min_limit": "200.00",
    "power.max_limit": "500.00",
    "clocks.max.sm": "1980",
    "clocks.mem": "2619",
    **dict(zip(provision_gpu.APPLICATION, ("2619", "1980", "2619", "1980"), strict=True)),
    **IDLE,
}
LOCK = {"locked_clocks": {"3": "1830"}}
LOCKED = {**NOTHING, "graphics": {"3": "1830"}}


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """Asked again, a card shows what it showed."""
    monkeypatch.setattr(provision_gpu.time, "sleep", lambda seconds: None)
    shown = []
    monkeypatch.setattr(provision_gpu, "query_gpus", lambda fields: shown)
    return shown


@pytest.mark.parametrize(
    ("seen", "wanted", "record", "commands"),
    [
        pytest.param({}, {}, NOTHING, [], id="nothing set and nothing wanted"),
        pytest.param({"clocks.sm": "1830"}, LOCK, LOCKED, [], id="locked as wanted"),
        pytest.param({}, LOCK, NOTHING, ["-lgc 1830,1830"], id="not locked yet"),
        pytest.param({"clocks.sm": "1500"}, LOCK, LOCKED, ["-lgc 1830,1830"], id="locked otherwise by hand"),
        pytest.param({"clocks.sm": "1980"}, LOCK, LOCKED, ["-lgc 1830,1830"], id="too fast"),
        pytest.param({}, LOCK, LOCKED, ["-lgc 1830,1830"], id="unlocked by hand"),
        pytest.param({}, LOCK, {**LOCKED, "quiet": ["3"]}, [], id="a card that hides its lock when idle"),
        pytest.param(
            {"clocks.sm": "1200", "clocks_event_reasons.sw_thermal_slowdown": "Active"}, LOCK, LOCKED, [], id="hot"
        ),
        pytest.param({"clocks.sm": "1200"}, {}, NOTHING, ["-rgc"], id="locked by hand where none is wanted"),
        pytest.param({"clocks.sm": "1200", "utilization.gpu": "80"}, {}, NOTHING, [], id="busy, so nothing is known"),
        pytest.param({"clocks.sm": "1980"}, {}, NOTHING, [], id="at its highest clock"),
        pytest.param({"clocks.sm": "1830"}, {}, LOCKED, ["-rgc"], id="no longer wanted"),
        pytest.param({}, {"locked_clocks": {"all": "210, 1200"}}, NOTHING, ["-lgc 210,1200"], id="a range"),
        pytest.param({}, {"memory_clocks": {"all": 1593}}, NOTHING, ["-lmc 1593,1593"], id="memory"),
        pytest.param({"clocks.mem": "1593"}, {}, {**NOTHING, "memory": {"3": "1593"}}, ["-rmc"], id="memory no longer"),
        pytest.param({"clocks.mem": "1593"}, {}, NOTHING, [], id="the card's own memory clock"),
        pytest.param({}, {"application_clocks": {"all": "2619, 1830"}}, NOTHING, ["-ac 2619,1830"], id="application"),
        pytest.param({"clocks.applications.graphics": "1830"}, {}, NOTHING, ["-rac"], id="application no longer"),
        pytest.param(
            {"clocks.applications.graphics": "1830"}, {"application_clocks": {"3": "2619,1830"}}, NOTHING, [], id="same"
        ),
        pytest.param(dict.fromkeys(provision_gpu.APPLICATION, "[N/A]"), {}, NOTHING, [], id="no application clocks"),
        pytest.param({}, {"power_limit": {"3": 450}}, NOTHING, ["-pl 450"], id="less power"),
        pytest.param({"power.limit": "300.00"}, {}, NOTHING, ["-pl 500.00"], id="the card's own power again"),
        pytest.param(
            {"power.limit": "[N/A]", "power.default_limit": "[N/A]"}, {}, NOTHING, [], id="no power limit at all"
        ),
        pytest.param({"compute_mode": "Prohibited"}, {}, NOTHING, ["-c DEFAULT"], id="compute mode"),
        pytest.param({"persistence_mode": "Disabled"}, {}, NOTHING, ["-pm 1"], id="persistence"),
        pytest.param({"ecc.mode.pending": "Disabled"}, {}, NOTHING, ["-e 1"], id="ECC"),
        pytest.param({"mig.mode.pending": "Enabled"}, {}, NOTHING, ["-mig 0"], id="MIG"),
        pytest.param({"mig.mode.pending": "[N/A]"}, {}, NOTHING, [], id="a card without MIG"),
        pytest.param({"ecc.mode.current": "Disabled"}, {}, NOTHING, [], id="ECC already waits for its reset"),
    ],
)
def test_what_differs(steady, seen, wanted, record, commands):
    row = {**CARD, **seen}
    steady.append(row)
    found = [" ".join(setting.command) for setting in provision_gpu.differing(row, {**WANTED, **wanted}, record)]
    assert found == commands


def test_a_clock_that_moves_is_no_lock(steady):
    steady.append({**CARD, "clocks.sm": "900"})
    assert not provision_gpu.locked_by_hand({**CARD, "clocks.sm": "1200"})


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"locked_clocks": {"3": 1831}}, "1831 MHz is no clock of these GPUs; the nearest are 1830 and 1845"),
        ({"locked_clocks": {"9": 1830}}, "There is no GPU 9 on this host; it has 3"),
        ({"locked_clocks": {"all": "fast"}}, "'fast' is no clock"),
        (
            {"application_clocks": {"3": "2619,1831"}},
            "1831 MHz is no graphics clock of GPU 3 beside 2619 MHz.* are 1830 and 1845",
        ),
        (
            {"application_clocks": {"3": "2600,1830"}},
            "2600 MHz is no memory clock of GPU 3; the only one is 2619",
        ),
        ({"application_clocks": {"3": "1830,2619"}}, "memory before graphics: 2619,1830, not 1830,2619"),
        ({"application_clocks": {"all": "1830"}}, "'1830' are no application clocks"),
        ({"power_limit": {"all": 900}}, "takes power limits from 200.00 to 500.00 W, not 900 W"),
    ],
)
def test_what_the_card_does_not_list_is_refused(monkeypatch, wanted, words):
    listed = "".join(f"2619, {clock}\n" for clock in range(1980, 344, -15))
    monkeypatch.setattr(provision_gpu, "run", lambda argv: Ran(0, listed, ""))
    refuse = provision_gpu.refuse_unknown if "no GPU" in words else provision_gpu.refuse_unlisted
    with pytest.raises(HostError, match=words):
        refuse({**WANTED, **wanted}, [CARD])


@pytest.fixture
def settings(role_module, monkeypatch, tmp_path):
    module = role_module("gpu", "gpu_settings")
    module.cards, module.ran = [{**CARD, "index": index} for index in "01"], []
    monkeypatch.setattr(module, "read_gpus", lambda: [dict(card) for card in module.cards])
    module.listed, module.systemd = [], {"ActiveState": "active", "UnitFileState": "enabled"}
    monkeypatch.setattr(module, "refuse_unlisted", lambda *_: module.listed.append(1))
    monkeypatch.setattr(module, "observe", lambda names: dict.fromkeys(names, module.systemd))
    monkeypatch.setattr(module, "RECORD", str(tmp_path / "record.json"))

    def run(argv):
        module.ran.append(" ".join(argv))
        for card in module.cards:
            if argv[3] == "-lgc" and card["index"] in argv[2].split(","):
                card["clocks.sm"] = argv[4].split(",")[0]

    monkeypatch.setattr(module, "run", run)
    return module


def apply(settings, **wanted):
    done = []
    for change in settings.plan({**WANTED, **wanted}, check_mode=False, rows=[]):
        change.act()
        done.append(change.action)
    return done


def test_gpus_with_the_same_change_get_it_together(settings):
    assert apply(settings, locked_clocks={"all": 1830}) == ["Locked the graphics clock of GPUs 0, 1 at 1830 MHz."]
    assert settings.ran == ["nvidia-smi -i 0,1 -lgc 1830,1830"]
    assert json.loads(Path(settings.RECORD).read_text())["graphics"] == {"0": "1830", "1": "1830"}
    assert settings.listed == [1]
    assert apply(settings, locked_clocks={"all": 1830}) == []
    assert settings.listed == [1]  # what stands was listed when it was set


class Killed(Exception):  # noqa: N818  it is an end from outside, not an error
    """The module was killed here."""


@pytest.mark.parametrize("is_done", [False, True], ids=["before nvidia-smi acts", "after it acted"])
@pytest.mark.parametrize(
    ("name", "lock", "unlock"), [("locked_clocks", "-lgc", "-rgc"), ("memory_clocks", "-lmc", "-rmc")]
)
def test_a_lock_of_a_run_that_was_killed_is_made_again_or_undone(settings, monkeypatch, name, lock, unlock, is_done):
    run = settings.run
    range_of_both = {name: {"1": "300,2700"}}  # the clocks lie within it, so they tell nothing

    def killed(argv):
        if is_done:
            run(argv)
        raise Killed

    for wanted, command in (({}, unlock), (range_of_both, f"{lock} 300,2700")):
        monkeypatch.setattr(settings, "run", killed)
        with pytest.raises(Killed):
            apply(settings, **range_of_both)
        monkeypatch.setattr(settings, "run", run)
        settings.ran.clear()
        apply(settings, **wanted)
        assert settings.ran == [f"nvidia-smi -i 1 {command}"]
        assert apply(settings, **wanted) == []
        Path(settings.RECORD).unlink()


@pytest.mark.parametrize("is_done", [False, True], ids=["before nvidia-smi acts", "after it acted"])
def test_a_lock_stays_known_until_it_is_undone(settings, monkeypatch, is_done):
    apply(settings, locked_clocks={"1": "300,1980"})
    run = settings.run

    def killed(argv):
        if is_done:
            run(argv)
        raise Killed

    monkeypatch.setattr(settings, "run", killed)
    with pytest.raises(Killed):
        apply(settings)
    monkeypatch.setattr(settings, "run", run)
    assert apply(settings) == ["Unlocked the graphics clock of GPU 1."]
    assert apply(settings) == []
    assert json.loads(Path(settings.RECORD).read_text())["graphics"] == {}


def test_a_host_without_a_driver_is_foretold(settings):
    settings.cards = []
    wanted = {**WANTED, "locked_clocks": {"1": 1830}, "power_limit": {"all": 500}}
    changes = list(settings.plan(wanted, check_mode=True, rows=[]))
    assert [change.action for change in changes] == ["Locked the graphics clock of GPU 1 at 1830 MHz."]
    assert changes[0].before == "GPU 1: no driver yet\n"
    with pytest.raises(HostError, match="driver stage first"):
        apply(settings)


@pytest.mark.parametrize("text", ["{", "[]", "7"])
def test_a_record_that_is_none_counts_as_lost(settings, text):
    Path(settings.RECORD).write_text(text)
    assert apply(settings) == []


def test_settings_that_come_back_with_the_daemon_are_not_called_lost(settings):
    settings.systemd["ActiveState"] = "inactive"
    settings.cards[0]["compute_mode"] = "Prohibited"
    wanted = {**WANTED, "restored_by": "provision-gpu.service"}
    assert list(settings.plan(wanted, check_mode=True, rows=[])) == []
    settings.systemd["ActiveState"] = "active"
    assert [change.effect for change in settings.plan(wanted, check_mode=True, rows=[])] == ["none"]


@pytest.mark.parametrize("name", ["ecc", "mig"])
def test_modes_that_wait_say_so(settings, name):
    (change,) = settings.plan({**WANTED, name: not WANTED[name]}, check_mode=True, rows=[])
    assert change.effect == "gpu_reset"


def test_what_waits_for_a_reset_is_told_once(settings):
    rows = [{**CARD, "index": index, "ecc.mode.current": "Disabled"} for index in "01"]
    assert settings.pending(rows, WANTED, False) == [
        "ECC mode of GPUs 0, 1 becomes Enabled with the next reset of the GPU or reboot."
    ]


@pytest.mark.parametrize(("card", "is_told"), [("8.0", True), ("9.0", False)])
def test_mig_of_a_card_that_changes_it_at_once_is_not_foretold_to_wait(settings, monkeypatch, card, is_told):
    monkeypatch.setattr(settings, "query_gpus", lambda fields: [{"index": "3", "compute_cap": card}])
    assert bool(settings.pending([CARD], {**WANTED, "mig": True}, True)) is is_told
    assert settings.pending([CARD], {**WANTED, "mig": True}, False)  # asked for, and not there: a client holds the card


def test_a_card_without_application_clocks_names_what_to_use_instead():
    row = {**CARD, "clocks.applications.graphics": "[N/A]"}
    with pytest.raises(HostError, match="Lock its graphics clock instead: gpu_locked_clocks"):
        provision_gpu.refuse_application_clocks(row, "2619,1830", [[2619, 1830]])


def test_a_driver_that_knows_no_application_clocks_is_asked_for_the_rest(monkeypatch):
    def query(fields):
        if set(fields) & set(provision_gpu.APPLICATION):
            raise HostError(
                'nvidia-smi ended with 2: Field "clocks.applications.memory" is not a valid field to query.'
            )
        return [dict.fromkeys(fields, "0")]

    monkeypatch.setattr(provision_gpu, "query_gpus", query)
    (row,) = provision_gpu.read_gpus()
    assert row["clocks.applications.memory"] == "[N/A]"
    assert row["clocks.sm"] == "0"
