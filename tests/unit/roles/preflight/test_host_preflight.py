"""What preflight says of a host, and that it says everything at once."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

PROFILES = yaml.safe_load((Path(__file__).parents[4] / "roles/preflight/vars/main.yml").read_text())[
    "preflight_profiles"
]
H20 = [("0x030200", "0x2329")] * 8 + [("0x068000", "0x22a3")] * 4


@pytest.fixture
def preflight(role_module):
    return role_module("preflight", "host_preflight")


def hardware(preflight, name, devices):
    return list(preflight.check_hardware(name, PROFILES, devices))


def test_a_host_that_shows_its_profile_is_fine(preflight):
    assert hardware(preflight, "8xh20-96", H20) == []


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (H20[1:], ["8 GPUs 0x2329 (NVIDIA H20)", "shows 7 GPUs", "lspci"]),
        ([], ["shows no GPU", "0 are on the PCI bus"]),
        (H20[:-1], ["has 4 NVSwitches; 3 are"]),
        ([("0x030200", "0x2324")] * 8 + H20[8:], ["shows 8 GPUs 0x2324 (NVIDIA H800)", "hardware_profile: 8xh800-80"]),
        ([("0x030200", "0xffff")] * 8 + H20[8:], ["of no known profile"]),
    ],
)
def test_other_hardware_is_told_with_what_to_do(preflight, devices, words):
    said = " ".join(hardware(preflight, "8xh20-96", devices))
    for word in words:
        assert word in said


def test_devices_are_read_from_the_bus(preflight, tmp_path):
    for address, vendor, kind in (("0", "0x10de", "0x030200"), ("1", "0x8086", "0x020000")):
        folder = tmp_path / address
        folder.mkdir()
        for name, value in {"vendor": vendor, "class": kind, "device": "0x2329"}.items():
            (folder / name).write_text(f"{value}\n")
    assert preflight.pci_devices(tmp_path) == [("0x030200", "0x2329")]
    assert preflight.pci_devices(tmp_path / "none") == []
    assert preflight.count_text(Counter(), {}) == "no GPU"


def test_an_unsupported_system_is_told(preflight):
    release = {"ID": "debian", "VERSION_ID": "11", "PRETTY_NAME": "Debian GNU/Linux 11 (bullseye)"}
    said = list(preflight.check_system({"debian": ["12"], "ubuntu": ["22.04", "24.04"]}, release))
    assert said[0].startswith(
        "It runs Debian GNU/Linux 11 (bullseye); supported are debian 12, ubuntu 22.04 and 24.04."
    )
    assert list(preflight.check_system({"debian": ["12"]}, {"ID": "debian", "VERSION_ID": "12"})) == []


def test_disk_is_asked_for_before_the_first_bootstrap_and_a_reserve_after(preflight, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "ENVIRONMENTS", str(tmp_path / "env"))
    huge = {str(tmp_path / "not/there/yet"): 2**60}
    assert "are needed." in next(preflight.check_disks(huge, 1))
    (tmp_path / "env/first").mkdir(parents=True)
    assert list(preflight.check_disks(huge, 1)) == []
    assert "to keep going" in next(preflight.check_disks(huge, 2**60))


def test_a_clock_apart_is_told(preflight, monkeypatch):
    monkeypatch.setattr(preflight.time, "time", lambda: 1000.0)
    assert list(preflight.check_clock(900.0, 300)) == []
    assert "900 s ahead of the controller's" in next(preflight.check_clock(100.0, 300))
    assert list(preflight.check_clock(100.0, 0)) == []


def test_everything_is_said_at_once(preflight, monkeypatch):
    monkeypatch.setattr(preflight, "pci_devices", list)
    wanted = {"profile_name": "8xh20-96", "profiles": PROFILES, "supported_os": {"plan9": ["4"]}, "min_free_disk": {}}
    wanted |= {"reserve_disk": 0, "check_memory": True, "controller_time": 0.0, "max_clock_skew": 300}
    problems, _, found = preflight.look({**wanted, "allow_secure_boot": True})
    assert len(problems) >= 4
    assert found["nvidia_devices"] == []


def test_an_unknown_profile_is_told_with_the_known(preflight):
    wanted = {"profile_name": "8xh20", "profiles": PROFILES, "supported_os": {}, "min_free_disk": {}, "reserve_disk": 0}
    wanted |= {"check_memory": True, "controller_time": 0.0, "max_clock_skew": 0, "allow_secure_boot": True}
    assert any("hardware_profile 8xh20 is not known; known are 4xa100-80" in line for line in preflight.look(wanted)[0])
