"""Tunables: file and kernel are judged apart, unknown ones refused."""

import pytest
from ansible.module_utils.provision_host import HostError


@pytest.fixture
def tunables(role_module, monkeypatch, tmp_path):
    module = role_module("host", "kernel_tunables")
    for name, value in {"vm/swappiness": "60", "net/ipv4/tcp_rmem": "4096\t131072\t6291456"}.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(f"{value}\n")
    monkeypatch.setattr(module, "PROC_SYS", tmp_path / "sys")
    return module


def actions(module, tmp_path, sysctls, sysfs=None):
    def apply():
        for change in module.plan(sysctls, sysfs or {}, str(tmp_path / "90.conf"), str(tmp_path / "tmpfiles.conf")):
            change.act()
            yield change.action

    return list(apply())


def test_kernel_and_file_are_repaired_each_for_itself(tunables, tmp_path):
    wanted = {"vm.swappiness": "1"}
    live, file = "Set vm.swappiness to 1 (it was 60).", f"Wrote the sysctls to {tmp_path}/90.conf."
    assert live in (first := actions(tunables, tmp_path, wanted))
    assert file in first
    assert actions(tunables, tmp_path, wanted) == []
    (tmp_path / "sys/vm/swappiness").write_text("60\n")
    assert actions(tunables, tmp_path, wanted) == [live]
    (tmp_path / "90.conf").unlink()
    assert actions(tunables, tmp_path, wanted) == [file]


def test_numbers_are_compared_whatever_separates_them(tunables, tmp_path):
    assert not [
        line for line in actions(tunables, tmp_path, {"net.ipv4.tcp_rmem": "4096 131072 6291456"}) if "Set" in line
    ]


def test_of_a_file_with_choices_the_one_in_brackets_counts(tunables, tmp_path):
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert tunables.live(tmp_path / "enabled") == "madvise"


def test_an_unknown_name_is_refused_before_anything_is_set(tunables, tmp_path):
    with pytest.raises(HostError, match=r"vm\.swapiness is not a sysctl of this kernel; it has vm\.swappiness"):
        actions(tunables, tmp_path, {"vm.swapiness": "1", "net.ipv4.tcp_rmem": "1 2 3"})
    assert (tmp_path / "sys/net/ipv4/tcp_rmem").read_text().startswith("4096")


def test_a_later_file_that_undoes_ours_is_named(tunables, tmp_path, monkeypatch):
    monkeypatch.setattr(tunables, "SYSCTL_FOLDERS", (str(tmp_path / "etc"), str(tmp_path / "usr")))
    for name, text in {"etc/99-x.conf": "vm/swappiness=60\n", "usr/10-y.conf": "vm.swappiness = 30\n"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    own = tmp_path / "etc/90-provision.conf"
    assert ["99-x.conf" in line for line in tunables.overridden({"vm.swappiness": "1"}, own)] == [True]
    assert tunables.overridden({"vm.swappiness": "60"}, own) == []
