"""What preflight says of a host, and that it says everything at once."""

from pathlib import Path

import pytest
import yaml
from ansible.module_utils import provision_fitness as fitness
from ansible.module_utils import provision_look as look

PROFILES = yaml.safe_load((Path(__file__).parents[4] / "roles/preflight/vars/main.yml").read_text())[
    "preflight_profiles"
]
H20 = [("0x030200", "0x2329")] * 8 + [("0x068000", "0x22a3")] * 4
SYSTEM = {
    "id": "debian", "version": "12", "name": "Debian GNU/Linux 12 (bookworm)", "machine": "x86_64",
    "kernel": "6.1.0-40-amd64", "python": "3.11.2",
}  # fmt: skip
FACTS = {
    "system": SYSTEM,
    "free": {"/opt": 2**40},
    "memory": 2**41,
    "nvidia": [{"kind": kind, "device": device} for kind, device in H20],
    "secure_boot": False,
    "nouveau": True,
    "driver_loaded": False,
    "bootstrapped": False,
}
WANTED = {
    "profile_name": "8xh20-96",
    "profiles": PROFILES,
    "supported_os": {"debian": ["12"], "ubuntu": ["22.04", "24.04"]},
    "min_free_disk": {"/opt": 2**30},
    "reserve_disk": 2**20,
    "check_memory": True,
    "allow_secure_boot": False,
}


@pytest.fixture
def preflight(role_module):
    return role_module("preflight", "host_preflight")


def said(facts=(), wanted=()):
    return [str(one) for one in fitness.objections({**FACTS, **dict(facts)}, {**WANTED, **dict(wanted)})]


def hardware(name, devices):
    return [str(one) for one in fitness.of_hardware(name, PROFILES, devices)]


def test_a_host_that_shows_its_profile_is_fine():
    assert said() == []
    assert hardware("8xh20-96", H20) == []


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
def test_other_hardware_is_told_with_what_to_do(devices, words):
    told = " ".join(hardware("8xh20-96", devices))
    for word in words:
        assert word in told


def test_devices_are_read_from_the_bus(tmp_path, monkeypatch):
    monkeypatch.setattr(look.pci, "SYS", tmp_path)
    assert look.pci_devices() == []
    for address, vendor, kind in (("0", "0x10de", "0x030200"), ("1", "0x8086", "0x020000")):
        folder = tmp_path / "bus/pci/devices" / address
        folder.mkdir(parents=True)
        for name, value in {"vendor": vendor, "class": kind, "device": "0x2329", "numa_node": "1"}.items():
            (folder / name).write_text(f"{value}\n")
    assert look.pci_devices() == [{"address": "0", "kind": "0x030200", "device": "0x2329", "numa": "1"}]


def test_an_unsupported_system_is_told():
    release = {**SYSTEM, "version": "11", "name": "Debian GNU/Linux 11 (bullseye)", "machine": "aarch64"}
    system, processor, python = said({"system": {**release, "python": "3.8.10"}})
    assert system.startswith("It runs Debian GNU/Linux 11 (bullseye); supported are debian 12, ubuntu 22.04 and 24.04.")
    assert "aarch64" in processor
    assert "3.9 or later" in python


def test_disk_is_asked_for_before_the_first_bootstrap_and_a_reserve_after():
    assert "0.5 GiB are free at /opt; 1.0 GiB are needed." in said({"free": {"/opt": 2**29}})[0]
    assert said({"free": {"/opt": 2**29}, "bootstrapped": True}) == []
    assert "to keep going" in said({"free": {"/opt": 2**19}, "bootstrapped": True})[0]


def test_room_is_looked_for_where_a_path_will_be(tmp_path):
    assert look.nearest_directory(str(tmp_path / "not/there/yet")) == tmp_path
    assert look.free_bytes(str(tmp_path / "not/there/yet")) == look.free_bytes(str(tmp_path))


def test_a_clock_apart_is_told():
    assert list(fitness.of_clock(100.0, 300)) == []
    assert "900 s ahead of the controller's" in str(next(fitness.of_clock(900.0, 300)))
    assert "2.5 s behind node-1's" in str(next(fitness.of_clock(-2.5, 2, "node-1's")))
    assert list(fitness.of_clock(900.0, 0)) == []


def test_secure_boot_is_told_until_a_driver_runs():
    assert "mokutil" in said({"secure_boot": True})[0]
    assert said({"secure_boot": True, "driver_loaded": True}) == []
    assert said({"secure_boot": True}, {"allow_secure_boot": True}) == []


def test_too_little_memory_is_told_where_it_counts():
    assert "at least 960 GiB" in said({"memory": 2**38})[0]
    assert said({"memory": 2**38}, {"check_memory": False}) == []


def test_everything_is_said_at_once_with_what_was_found(preflight, monkeypatch):
    facts = {**FACTS, "nvidia": [], "memory": 2**30, "secure_boot": True}
    monkeypatch.setattr(preflight, "base", lambda _paths: facts)
    monkeypatch.setattr(preflight.time, "time", lambda: 1000.0)
    problems, notes, found = preflight.look({**WANTED, "controller_time": 100.0, "max_clock_skew": 300})
    assert len(problems) == 5
    assert notes == ["nouveau is loaded; the driver stage takes its place."]
    assert found == {"os": "debian 12", "kernel": "6.1.0-40-amd64", "nouveau": True, "nvidia_devices": []}


def test_the_facts_of_this_machine_fit_the_questions():
    assert isinstance([str(one) for one in fitness.objections(look.base(["/opt"]), WANTED)], list)


def test_an_unknown_profile_is_told_with_the_known():
    assert any("8xh20 is not known. Known are 4xa100-80" in line for line in said(wanted={"profile_name": "8xh20"}))
