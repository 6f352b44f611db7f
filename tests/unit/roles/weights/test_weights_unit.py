"""The unit that fetches: what it is told, where its secrets are, and what becomes of its end."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.module_utils import provision_weights_unit
from ansible.module_utils.provision_host import HostError, Ran

COMMIT = "c" * 40


@pytest.fixture
def systemd(monkeypatch, tmp_path):
    """A unit whose start, states and end the test decides; `.commands` lists what was run."""
    for name, path in (("SPEC", "weights.json"), ("SECRETS", "secrets/weights.env"), ("STATE", "state")):
        monkeypatch.setattr(provision_weights_unit, name, str(tmp_path / path))
    (tmp_path / "state").mkdir()
    me = SimpleNamespace(pw_uid=os.getuid(), pw_gid=os.getgid())
    monkeypatch.setattr(provision_weights_unit.pwd, "getpwnam", lambda _name: me)
    monkeypatch.setattr(provision_weights_unit.time, "sleep", lambda _: None)

    class Systemd:
        commands, states = [], ["inactive"]

        def run(self, argv, **_):
            self.commands.append(argv)
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            return Ran(0, f"ActiveState={state}\nResult=exit-code\nLoadState=loaded\n", "")

        def says(self, **told):
            (tmp_path / "state/state.json").write_text(json.dumps(told))

    systemd = Systemd()
    monkeypatch.setattr(provision_weights_unit, "run", systemd.run)
    return systemd


@pytest.fixture
def unit(systemd, tmp_path):
    params = {
        "repo": "a/b",
        "directory": str(tmp_path),
        "exclude": [],
        "chain": ["10.0.0.1", "10.0.0.2"],
        "address": "10.0.0.2",
        "port": 8082,
        "uplink": True,
        "streams": 8,
        "rate": 0,
        "serving_rate": 1000,
        "patience": 60,
        "source": "s3",
        "endpoint": "http://store",
        "path": "",
        "bucket": "b/c",
        "token": "hf_secret",
        "s3_access_key": "AKIA",
        "s3_secret_key": 's3"cret',
        "s3_region": "",
        "user": "nobody",
        "unit": "provision-weights",
        "python": "/nowhere/python",
    }
    return provision_weights_unit.Unit(params, tmp_path / "a--b")


def test_what_it_is_told_holds_no_secret(unit, systemd, tmp_path):
    unit.start(COMMIT, "{}")
    spec = Path(provision_weights_unit.SPEC).read_text()
    assert "secret" not in spec
    assert "AKIA" not in spec
    assert json.loads(spec)["source"] == {"kind": "s3", "endpoint": "http://store", "bucket": "b/c"}
    secrets = Path(provision_weights_unit.SECRETS)
    assert secrets.stat().st_mode & 0o777 == 0o600
    assert 'WEIGHTS_TOKEN="hf_secret"' in secrets.read_text()
    assert r'AWS_SECRET_ACCESS_KEY="s3\"cret"' in secrets.read_text()
    assert not any("secret" in word for argv in systemd.commands for word in argv)
    assert (tmp_path / "a--b" / f"{COMMIT}.partial/.manifest.json").read_text() == "{}"


def test_one_that_is_at_this_very_work_is_left_alone(unit, systemd):
    unit.start(COMMIT, "{}")
    systemd.states[:] = ["active"]
    assert unit.is_at_work(COMMIT)
    systemd.commands.clear()
    unit.start(COMMIT, "{}")
    assert ["systemctl", "restart", "provision-weights.service"] not in systemd.commands
    unit.start("d" * 40, None)
    assert ["systemctl", "restart", "provision-weights.service"] in systemd.commands


def test_after_its_end_nobody_keeps_the_token(unit, systemd):
    unit.start(COMMIT, "{}")
    systemd.states[:] = ["active", "activating", "inactive"]
    systemd.says(done=True, commit=COMMIT, failed="")
    unit.wait(COMMIT)
    assert not Path(provision_weights_unit.SECRETS).exists()


def test_why_it_failed_is_told_in_its_own_words(unit, systemd):
    unit.start(COMMIT, "{}")
    systemd.says(done=False, commit=COMMIT, failed="The disk of /data is full.")
    with pytest.raises(HostError, match="The disk of /data is full"):
        unit.wait(COMMIT)
    systemd.says(done=True, commit="of another", failed="")
    with pytest.raises(HostError, match="without a word"):
        unit.wait(COMMIT)


def test_a_program_that_is_not_there_yet_cannot_be_asked(unit):
    with pytest.raises(HostError, match="only once /nowhere/python is there"):
        unit.listed(COMMIT)
