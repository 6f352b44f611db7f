"""What the hardware keeps and loses, and what the kernel's files show of it."""

from __future__ import annotations

import json

import pytest

from provision.content import hardware_profiles
from provision.errors import LabError
from provision.lab.hardware import factory, knobs, state, tree
from provision.lab.hardware.nodes import Setting


def test_the_same_host_always_gets_the_same_cards(tmp_path):
    for name in ("one", "two"):
        factory.create(tmp_path / name, "8xh800-80", "node-1")
    factory.create(tmp_path / "other", "8xh800-80", "node-2")
    one, two, other = (json.loads((tmp_path / name).read_text())["gpus"] for name in ("one", "two", "other"))
    assert one == two
    assert len({gpu["uuid"] for gpu in one + other}) == 16


def test_an_unknown_profile_is_an_error_that_names_the_known_ones(tmp_path):
    with pytest.raises(LabError, match=r"There is no hardware profile 9xh9000. Known: 4xa100-80, 8xh20-141"):
        factory.create(tmp_path / "state.json", "9xh9000", "node-1")


def test_a_server_without_cards(bare):
    host = bare(None)
    hardware = host.read()
    assert hardware["gpus"] == []
    assert "nouveau" not in hardware["modules"]
    assert "infiniband" not in tree.find(tree.build(hardware), "sys").get("class", {})


def test_a_reboot_loses_settings_and_keeps_the_cards_history(ready):
    host = ready()
    with host.change() as hardware:
        hardware["gpus"][0].update(graphics_lock=[1830, 1830], power_limit=600.0, ecc_pending="Disabled", lost=True)
        hardware["gpus"][0]["ecc_errors"]["aggregate"]["dram_correctable"] = 7
        hardware["knobs"]["proc/sys/vm/swappiness"] = "1"
    factory.power_on(host.state_file)
    hardware = host.read()
    gpu = hardware["gpus"][0]
    assert (gpu["graphics_lock"], gpu["power_limit"], gpu["persistence"], gpu["lost"]) == (None, 700, False, False)
    assert gpu["ecc_current"] == "Disabled"
    assert gpu["ecc_errors"]["aggregate"]["dram_correctable"] == 7
    assert gpu["fabric"] == "In Progress"
    assert hardware["knobs"] == {}
    assert hardware["driver"]["loaded"] == "580.159.04"


def test_the_module_of_the_installed_driver_is_loaded_at_boot_only(ready):
    host = ready()
    with host.change() as hardware:
        hardware["driver"]["installed"] = "580.126.20"
        state.load_module(hardware, "nvidia_uvm")
    assert host.read()["driver"]["loaded"] == "580.159.04"
    factory.power_on(host.state_file)
    assert host.read()["driver"]["loaded"] == "580.126.20"


def test_nouveau_holds_ampere_cards_and_leaves_hopper_alone(bare):
    for profile, objection in (("4xa100-80", "No such device"), ("8xh20-96", None)):
        with bare(profile).change() as hardware:
            assert "nouveau" in hardware["modules"]
            hardware["driver"]["installed"] = "580.159.04"
            assert state.load_module(hardware, "nvidia") == objection


def test_a_change_that_fails_writes_nothing(ready):
    host = ready()

    def fail():
        with host.change() as hardware:
            hardware["modules"] = []
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "nvidia" in host.read()["modules"]


@pytest.mark.parametrize(
    ("path", "written", "shown"),
    [
        ("proc/sys/vm/swappiness", "1\n", "1\n"),
        ("proc/sys/vm/max_map_count", "0x100000", "1048576\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "madvise\n", "always [madvise] never\n"),
        ("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "performance\n", "performance\n"),
        ("proc/sys/vm/swappiness", "201", None),
        ("proc/sys/vm/swappiness", "few", None),
        ("sys/kernel/mm/transparent_hugepage/enabled", "sometimes", None),
        ("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "ondemand", None),
    ],
)
def test_knobs_take_what_a_kernel_takes(bare, path, written, shown):
    with bare("8xh20-96").change() as hardware:
        knob = tree.find(tree.build(hardware), path)
        assert isinstance(knob, Setting)
        if shown is None:
            with pytest.raises(ValueError, match=written.strip()):
                knob.write(hardware, written)
            return
        knob.write(hardware, written)
        assert tree.find(tree.build(hardware), path).text == shown


def test_only_knobs_of_the_machines_own_kernel_are_shown(tmp_path):
    (tmp_path / "vm").mkdir()
    (tmp_path / "vm/swappiness").write_text("60\n")
    (tmp_path / "vm/lowmem_reserve_ratio").write_text("256\t256\t32\n")
    found = knobs.sysctls(tmp_path)
    assert set(found) == {"vm/swappiness", "vm/lowmem_reserve_ratio"}
    assert found["vm/lowmem_reserve_ratio"].accept("1 2 3") == "1\t2\t3"
    with pytest.raises(ValueError, match="1 2"):
        found["vm/lowmem_reserve_ratio"].accept("1 2")


@pytest.mark.parametrize("profile", sorted(hardware_profiles()))
def test_the_bus_shows_every_device_of_the_profile(ready, profile):
    host = ready(profile)
    built = tree.build(host.read())
    described = host.read()["profile"]
    links = tree.find(built, "sys/bus/pci/devices")
    below = {
        address: tree.find(built, f"sys/{link.target.removeprefix('../../../')}") for address, link in links.items()
    }
    devices = {address: device for address, device in below.items() if device["class"] != "0x060400\n"}
    found = [(device["vendor"], device["device"], device["class"]) for device in devices.values()]
    gpu = ("0x10de\n", f"{described['gpus']['pci_device']}\n", "0x030200\n")
    assert (
        found.count(gpu)
        == described["gpus"]["count"]
        == len(described["gpus"]["bus_ids"])
        == len(described["gpus"]["numa"])
    )
    assert len([each for each in found if each[2] == "0x068000\n"]) == described["nvswitches"]["count"]
    assert (
        len(devices)
        == len(found)
        == described["gpus"]["count"] + described["nvswitches"]["count"] + len(described["rdma"])
    )
    assert all(
        device["driver"].target.endswith("/bus/pci/drivers/nvidia")
        for device in devices.values()
        if "0x0302" in device["class"]
    )
    assert all(len(device["config"].data) == 256 for device in below.values())


def test_an_rdma_port_that_lost_its_link(bare):
    host = bare("8xh800-80")
    with host.change() as hardware:
        hardware["rdma"]["mlx5_1"]["link"] = "down"
    ports = tree.find(tree.build(host.read()), "sys/class/infiniband")
    states = [device["ports"]["1"]["state"] for device in ports.values()]
    assert states == ["4: ACTIVE\n", "1: DOWN\n"] + ["4: ACTIVE\n"] * 7


def test_swap_lines_are_the_kernels(bare):
    host = bare("8xh20-96")
    with host.change() as hardware:
        hardware["swaps"] = [{"path": "/swapfile", "size_kib": 65532, "priority": -2}]
    assert tree.find(tree.build(host.read()), "proc/swaps") == (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/swapfile                               file\t\t65532\t\t0\t\t-2\n"
    )


@pytest.mark.parametrize("profile", sorted(hardware_profiles()))
def test_1830_mhz_is_a_clock_where_the_examples_lock_it(profile):
    clock = hardware_profiles()[profile]["gpus"]["graphics_clock"]
    assert (1830 in range(clock["min"], clock["max"] + 1, clock["step"])) == profile.startswith("8xh")
