"""Packages and small files: what is missing, said the same in both modes."""

import os
import pwd
import re
import subprocess
import time

import pytest
from ansible.module_utils import provision_apt
from ansible.module_utils.provision_apt import Package, installed, satisfies
from ansible.module_utils.provision_host import HostError, Ran
from ansible.module_utils.provision_transient import UnitError

ROWS = [
    "dpkg amd64 ii_ 1.21 - - -",
    "libnuma1 amd64 ii_ 2.0.16-1 - - libc6",
    "libnuma1 i386 ii_ 2.0.15-1 - - libc6",
    "wine32 i386 ii_ 8 - - -",
    "nvidia-open amd64 hi_ 580.126.20-1 - - -",
    "gone amd64 rc_ 1 - - -",
    "unpacked amd64 iU_ 1 - - -",
    "broken amd64 iiR 1 - - -",
    "mailer all ii_ 1 mail-agent - base,libnuma1(>=2)|other",
]


def listed(rows):
    cells = [[cell.strip("-").replace("_", " ") for cell in row.split(" ")] for row in rows]
    return "".join("\t".join(row) + "\x1e" for row in cells)


@pytest.fixture
def dpkg(monkeypatch, tmp_path):
    """A dpkg that lists ROWS, and counts how often it was asked."""
    for name in ("STATUS", "JOURNAL"):
        monkeypatch.setattr(provision_apt, name, str(tmp_path / name))
    (tmp_path / "STATUS").touch()
    (tmp_path / "JOURNAL").mkdir()
    monkeypatch.setattr(provision_apt, "_known", {})
    asked = []
    monkeypatch.setattr(provision_apt, "run", lambda argv: asked.append(argv) or Ran(0, listed(ROWS), ""))
    return asked


def test_installed_packages_are_told_with_what_is_wrong_of_them(dpkg):
    found = installed()
    assert found["libnuma1"][:3] == ("2.0.16-1", False, True)
    assert found["nvidia-open"].held
    assert "gone" not in found
    assert {name for name, package in found.items() if not package.whole} == {"broken", "unpacked"}


HELD = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 812 (apt-get)"


@pytest.mark.parametrize(
    ("ends", "came"),
    [([(100, HELD), (100, HELD), (0, "")], True), ([(100, "E: Failed to fetch")], False), ([(0, "")], True)],
    ids=["held for a while", "no network", "at once"],
)
def test_lists_that_another_process_holds_are_waited_for(monkeypatch, ends, came):
    left = list(ends)
    monkeypatch.setattr(provision_apt.time, "sleep", lambda _: None)
    monkeypatch.setattr(
        provision_apt,
        "run",
        lambda argv, check: Ran(left[0][0], "", left.pop(0)[1]),
    )
    assert provision_apt.fetch_lists(60) == came
    assert left == []


def test_lists_that_stay_held_are_given_up(monkeypatch):
    monkeypatch.setattr(provision_apt, "run", lambda argv, check: Ran(100, "", HELD))
    assert not provision_apt.fetch_lists(0)


def test_dpkg_is_asked_again_only_when_its_files_have_changed(dpkg, tmp_path):
    installed(), installed()
    assert len(dpkg) == 1
    (tmp_path / "JOURNAL/0001").touch()
    installed()
    (tmp_path / "STATUS").write_text("x")
    installed()
    assert len(dpkg) == 3


def test_what_packages_need_and_have_not_is_found(dpkg):
    present = {**installed(), "top": Package("1", False, depends="mail-agent, mailer (>= 1), python3:any | perl")}
    assert provision_apt.lost_dependencies(["top"], present) == {"base", "libc6", "python3"}
    assert provision_apt.lost_dependencies(["libnuma1"], {**present, "libc6": Package("2", False)}) == set()
    assert provision_apt.lost_dependencies(["x"], {"x": Package("1", False, depends="unpacked"), **present}) == {
        "unpacked"
    }


@pytest.mark.parametrize(
    ("package", "wanted", "expected"),
    [
        (None, "", False),
        (Package("1-2", False), "", True),
        (Package("1-2", False, whole=False), "", False),
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
    ("said", "lock"),
    [
        (
            "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1 (x)",
            "/var/lib/dpkg/lock-frontend",
        ),
        (
            "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?",
            "/var/lib/dpkg/lock-frontend",
        ),
        (
            "E: Could not get lock /var/lib/dpkg/lock - open (11: Resource temporarily unavailable)",
            "/var/lib/dpkg/lock",
        ),
        (
            "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (x)\nE: Unable to lock directory "
            "/var/lib/apt/lists/",
            "/var/lib/apt/lists/lock",
        ),
        ("E: Could not get lock /elsewhere/lock", "its lock"),
    ],
)
def test_who_holds_the_lock_is_named(monkeypatch, said, lock):
    def fail(unit, *_):
        raise UnitError(unit, said)

    asked = []
    monkeypatch.setattr(provision_apt, "run_unit", fail)
    monkeypatch.setattr(provision_apt, "installed", dict)
    monkeypatch.setattr(provision_apt, "lock_holder", lambda locks: asked.append(list(locks)) or "apt (process 7)")
    with pytest.raises(HostError, match=rf"in use on this host: apt \(process 7\) holds {lock}, and .* waited 3 s for"):
        provision_apt.install({"a": ""}, 3, "provision-packages")
    assert asked == [[lock] if lock != "its lock" else list(provision_apt.LOCKS)]
    monkeypatch.setattr(provision_apt, "lock_holder", lambda locks: "")
    with pytest.raises(HostError, match=f"a process that has just ended held {lock}, and this run has waited 3 s"):
        provision_apt.install({"a": ""}, 3, "provision-packages")


@pytest.mark.parametrize(
    ("said", "quoted"),
    [
        ("Reading lists...\nE: Unable to locate package x", "E: Unable to locate package x"),
        ("Reading lists...\nKilled", "Reading lists... Killed"),
        (
            "dpkg: error processing package x (--configure):\nSetting up x\nError! Bad return status for module build\ndpkg: error processing package x (--configure):\n"
            " x depends on y\nError! Bad return status for module build\nE: Sub-process dpkg returned an error code (1)",
            "Error! Bad return status for module build dpkg: error processing package x (--configure): "
            "E: Sub-process dpkg returned an error code (1)",
        ),
    ],
)
def test_what_went_wrong_is_quoted(said, quoted):
    told = f"{said}\nprovision-driver.service: Failed with result 'exit-code'.\n"
    sentence = provision_apt.explain(told, ["x=1"], "provision-driver", 3)
    assert sentence.startswith(f"apt-get install x=1 failed. It said: {quoted}\n")
    assert "journalctl -u provision-driver" in sentence


APT = """#!/bin/sh
echo "$*" >> "$LOG"
for word in "$@"; do
  case $word in
    update)
      [ "$(grep -c ' update$' "$LOG")" -gt "$REFUSED" ] || { cat "$FOLDER/refuses" >&2; exit 100; }
      touch "$FOLDER/fetched" ;;
    check) [ ! -e "$FOLDER/broken" ] || exit 100 ;;
    --fix-broken) exit 100 ;;
    install) [ -e "$FOLDER/fetched" ] || { cat "$FOLDER/says" >&2; exit 100; } ;;
  esac
done
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Runs the script of an installation with an apt-get that has no lists until it is told to fetch them."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"apt-get": APT, "dpkg": '#!/bin/sh\necho "dpkg $*" >> "$LOG"\n'}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "says").write_text("E: Unable to locate package\n")
    (tmp_path / "log").touch()
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "LOG": str(tmp_path / "log"), "FOLDER": str(tmp_path)}
    environment |= {
        "REFUSED": "0",
        "LOCKED": provision_apt.LOCKED,
        "LOCK_TIMEOUT": "3",
        "PACKAGES": "a=1-* b",
        "OPTIONS": "",
        "ALONE": "",
        "LOST": "",
    }

    def run(**more):
        done = subprocess.run(["/bin/sh", "-euc", provision_apt.INSTALL], env=environment | more, check=False, cwd="/")
        lines = (tmp_path / "log").read_text().splitlines()
        return done.returncode, [re.sub(".*Lock::Timeout=[0-9]+ ", "", line) for line in lines if "audit" not in line]

    return run


def test_lists_are_fetched_only_when_they_are_needed(script, tmp_path):
    ask = "install --no-install-recommends a=1-* b"
    assert script() == (0, [ask, "update", ask])
    (tmp_path / "log").write_text("")
    assert script() == (0, [ask])


def test_what_force_removed_comes_back_with_what_is_wanted(script, tmp_path):
    (tmp_path / "fetched").touch()
    ask = "install --no-install-recommends"
    assert script(LOST="gone") == (0, ["check", f"{ask} a=1-* b"])
    (tmp_path / "broken").touch()
    (tmp_path / "log").write_text("")
    whole = f"{ask} --allow-change-held-packages a=1-* b gone"
    assert script(LOST="gone") == (0, ["check", "install --fix-broken", whole])


def test_a_held_lock_is_not_waited_for_twice(script, tmp_path):
    (tmp_path / "says").write_text("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 1 (x)\n")
    code, asked = script()
    assert (code, len(asked)) == (100, 1)


LISTS = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (x)\nE: Unable to lock directory /var\n"


def test_a_lock_for_which_apt_does_not_wait_is_waited_for(script, tmp_path):
    (tmp_path / "refuses").write_text(LISTS)
    ask = "install --no-install-recommends a=1-* b"
    assert script(LOCK_TIMEOUT="60", REFUSED="2") == (0, [ask, "update", "update", "update", ask])


def test_a_lock_that_nobody_lets_go_is_waited_for_as_long_as_asked(script, tmp_path, capfd):
    (tmp_path / "refuses").write_text(LISTS)
    begin = time.monotonic()
    code, asked = script(REFUSED="99")
    assert (code, asked[-2:]) == (100, ["update", "update"])
    assert 2 < time.monotonic() - begin < 30
    assert capfd.readouterr().err.count("Could not get lock") == 1


def test_lists_that_cannot_be_fetched_end_the_run_at_once(script, tmp_path):
    (tmp_path / "refuses").write_text("E: The repository does not have a Release file.\n")
    code, asked = script(REFUSED="99")
    assert (code, asked.count("update")) == (1, 1)


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


def test_a_directory_may_be_a_link_but_not_one_that_leads_nowhere(role_module, tmp_path):
    module = role_module("host", "text_files")
    who = pwd.getpwuid(os.getuid()).pw_name
    wanted = [{"path": str(tmp_path / "link"), "owner": who, "mode": "0755"}]
    (tmp_path / "disk").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    assert list(module.plan(wanted, [])) == []
    (tmp_path / "disk").rmdir()
    with pytest.raises(HostError, match="a link that leads nowhere"):
        list(module.plan(wanted, []))
