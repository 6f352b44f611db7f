"""Packages and small files: what is missing, said the same in both modes."""

import os
import pwd

import pytest
from ansible.module_utils import provision_apt
from ansible.module_utils.provision_apt import Package, installed, satisfies
from ansible.module_utils.provision_host import HostError, Ran

LISTED = "libnuma1:amd64\tii \t2.0.16-1\nnvidia-open\thi \t580.126.20-1\ngone\trc \t1\nhalf\tiU \t1\n"


def test_installed_packages_are_those_that_are_whole_enough(monkeypatch):
    monkeypatch.setattr(provision_apt, "run", lambda *_, **__: Ran(0, LISTED, ""))
    found = installed()
    assert found["libnuma1"] == Package("2.0.16-1", held=False)
    assert found["nvidia-open"].held
    assert "gone" not in found


@pytest.mark.parametrize(
    ("package", "wanted", "expected"),
    [
        (None, "", False),
        (Package("1-2", False), "", True),
        (Package("1-2", False), "1-*", True),
        (Package("11-2", False), "1-*", False),
    ],
)
def test_a_version_may_be_a_pattern(package, wanted, expected):
    assert satisfies(package, wanted) is expected


def test_all_that_is_missing_is_one_change(role_module, monkeypatch):
    module = role_module("host", "apt_packages")
    monkeypatch.setattr(module, "installed", lambda: {"a": Package("1", False), "b": Package("1", False)})
    changes = list(module.plan(["a", "b=2", "c"], 1))
    assert [change.action for change in changes] == ["Installed b, c."]
    assert changes[0].before == "b: 1\nc: absent\n"
    assert list(module.plan(["a"], 1)) == []


@pytest.mark.parametrize(
    "said",
    [
        "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1 (x)",
        "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?",
    ],
)
def test_who_holds_the_lock_is_named(monkeypatch, said):
    monkeypatch.setattr(provision_apt, "run", lambda *_, **__: Ran(100, "", said))
    monkeypatch.setattr(provision_apt, "lock_holder", lambda: "unattended-upgr (process 7)")
    with pytest.raises(HostError, match=r"apt is in use on this host: unattended-upgr \(process 7\)"):
        provision_apt.install({"a": ""}, 3)


def test_directories_and_files(role_module, tmp_path, monkeypatch):
    module = role_module("host", "text_files")
    who = pwd.getpwuid(os.getuid()).pw_name
    folder, old, new = tmp_path / "d", tmp_path / "old", tmp_path / "new"
    old.write_text("x")
    wanted = [{"path": str(folder), "owner": who, "mode": "0750"}]
    files = [{"path": str(old), "content": None, "mode": "0644"}, {"path": str(new), "content": "y", "mode": "0600"}]
    for expected in ([f"Made {folder}.", f"Removed {old}.", f"Wrote {new}."], []):
        done = []
        for change in module.plan(wanted, files):
            change.act()
            done.append(change.action)
        assert done == expected
    folder.chmod(0o777)
    assert [change.action for change in module.plan(wanted, [])] == [f"Corrected owner or mode of {folder}."]


def test_an_owner_that_does_not_exist_yet_is_foretold(role_module, tmp_path):
    module = role_module("host", "text_files")
    wanted = [{"path": str(tmp_path / "d"), "owner": "nobody-yet", "mode": "0755"}]
    assert next(module.plan(wanted, [])).after == "nobody-yet:nobody-yet 0755\n"
