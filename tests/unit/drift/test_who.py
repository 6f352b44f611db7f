"""Who made a change: from the journal, dpkg's and apt's logs and the file system, and nothing where they are silent."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from provision.drift.host import packages, who, words

NOW = time.time()


def change(resource: str, before: str = "", module: str = "m") -> dict[str, str]:
    return {"module": module, "resource": resource, "before": before, "after": "", "action": "", "effect": "none"}


@pytest.fixture(autouse=True)
def _still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has one moment of its own, in which all of it happens."""
    now = time.time()
    monkeypatch.setitem(globals(), "NOW", now)
    monkeypatch.setattr(time, "time", lambda: now)


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch):
    """Hosts whose sudo logged these commands, each some seconds ago, and whose units are as given."""

    def have(*commands: tuple[float, str], unit: str = "") -> who.Witness:
        message = "   {} : TTY=pts/0 ; PWD=/home/alice ; USER=root ; COMMAND={}"
        lines = [
            json.dumps({"__REALTIME_TIMESTAMP": str(int((NOW - age) * 1e6)), "MESSAGE": message.format("alice", line)})
            for age, line in sorted(commands)
        ]
        session = json.dumps({"__REALTIME_TIMESTAMP": "1", "MESSAGE": "pam_unix(sudo:session): session opened"})

        def run(argv, **_more):
            return SimpleNamespace(rc=0, out=unit if argv[0] == "systemctl" else "\n".join([session, *lines]), err="")

        monkeypatch.setattr(who.provision_host, "run", run)
        monkeypatch.setattr(packages, "LOGS", ())
        return who.Witness(NOW - 3600)

    return have


@pytest.mark.parametrize(
    ("resource", "before", "command", "shown"),
    [
        ("vm.swappiness", "60\n", "/usr/sbin/sysctl -w vm.swappiness=60", "sysctl -w vm.swappiness=60"),
        (
            "vm.swappiness",
            "60\n",
            "/bin/sh -c 'echo 60 > /proc/sys/vm/swappiness'",
            "echo 60 > /proc/sys/vm/swappiness",
        ),
        ("vllm.service", "state: inactive (dead)\n", "/usr/bin/systemctl stop vllm", "systemctl stop vllm"),
        ("apt holds", "nvidia-open: free\n", "/usr/bin/apt-mark unhold nvidia-open", "apt-mark unhold nvidia-open"),
        ("nvidia-smi -rgc", "GPU 3: held\n", "/usr/bin/nvidia-smi -i 3 -lgc 1500", "nvidia-smi -i 3 -lgc 1500"),
        ("/sys/kernel/mm/x", "never\n", "/usr/bin/tee /sys/kernel/mm/x", "tee /sys/kernel/mm/x"),
    ],
)
def test_a_command_that_names_the_resource(journal, resource, before, command, shown) -> None:
    told = journal((600, command)).who(change(resource, before))
    assert told == f"by alice with `{shown}`, 10 min ago"


@pytest.mark.parametrize(
    ("resource", "command"),
    [
        ("vm.swappiness", "/usr/sbin/sysctl vm.swappiness"),
        ("vm.swappiness", "/usr/sbin/sysctl -w vm.swappiness_more=1"),
        ("vllm.service", "/usr/bin/systemctl --no-pager status vllm.service"),
        ("vllm.service", "/usr/bin/systemctl stop other-vllm"),
        ("nvidia-smi -pm", "/usr/bin/nvidia-smi -i 3 -lgc 1500"),
        ("nvidia-smi -c", "/usr/bin/nvidia-smi -q -d CLOCK"),
        ("apt holds", "/usr/bin/apt-mark showhold nvidia-open"),
    ],
)
def test_a_command_that_reads_or_is_about_something_else(journal, resource, command) -> None:
    assert journal((600, command)).who(change(resource, "nvidia-open: free\n")) is None


def test_the_command_that_set_what_is_there_now(journal) -> None:
    witness = journal((60, "/sbin/sysctl -w vm.swappiness=10"), (600, "/sbin/sysctl -w vm.swappiness=60"))
    assert "swappiness=60`" in str(witness.who(change("vm.swappiness", "60\n")))


def test_when_a_unit_ended(journal) -> None:
    then = int((time.monotonic() - 300) * 1e6)
    shown = f"ActiveState=failed\nResult=oom-kill\nStateChangeTimestampMonotonic={then}\n"
    assert journal(unit=shown).who(change("vllm.service")) == "failed (oom-kill) 5 min ago"
    stopped = shown.replace("failed", "inactive").replace("oom-kill", "success")
    assert journal(unit=stopped).who(change("vllm.service")) == "stopped 5 min ago"
    assert journal(unit=stopped.replace(str(then), "0")).who(change("vllm.service")) is None


def test_files_say_when_and_whose(journal, tmp_path: Path) -> None:
    path = tmp_path / "limits.conf"
    path.write_text("x")
    assert str(journal().who(change(str(path)))).startswith("file changed 0 s ago")
    os.utime(path, (1, 1))
    assert str(journal().who(change(str(path)))).startswith("mode, owner or name changed")
    path.unlink()
    assert str(journal().who(change(str(path)))).startswith("its directory changed")
    assert journal().who(change(str(tmp_path / "no/such"))) is None


def test_a_command_long_before_the_file_changed_is_not_blamed(journal, tmp_path: Path) -> None:
    path = tmp_path / "limits.conf"
    path.write_text("x")
    assert "`rm -f" in str(journal((20, f"/bin/rm -f {path}")).who(change(str(path))))
    later = journal((-30, f"/bin/rm -f {path}"), (7200, f"/bin/rm -f {path}"))
    assert "file changed" in str(later.who(change(str(path))))


def test_packages_by_dpkg_and_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW - 600))
    log, history = tmp_path / "dpkg.log", tmp_path / "history.log"
    log.write_text(
        f"{at} startup archives unpack\n{at} upgrade nvidia-open:amd64 580.95.05-1 580.126.20-1\n{at} status installed x:all 1\n"
    )
    history.write_text("")
    monkeypatch.setattr(packages, "LOGS", (str(log), str(tmp_path / "none")))
    monkeypatch.setattr(packages, "HISTORIES", (str(history),))
    witness = who.Witness(NOW - 3600)
    asked = change("packages of the driver", "nvidia-open: 580.126.20-1\n")
    assert witness.who(asked) == f"dpkg upgraded nvidia-open 10 min ago ({log}:2)"
    entry = f"Start-Date: {at.replace(' ', '  ')}\nCommandline: /usr/bin/unattended-upgrade\n{{}}Upgrade: nvidia-open:amd64 (580.95.05-1, 580.126.20-1)\nEnd-Date: {at.replace(' ', '  ')}\n\n"
    history.write_text(entry.format(""))
    assert witness.who(asked) == f"apt upgraded nvidia-open 10 min ago (unattended-upgrade, {log}:2)"
    history.write_text(
        entry.format("Requested-By: alice (1000)\n").replace("/usr/bin/unattended-upgrade", "apt-get upgrade -y")
    )
    assert witness.who(asked) == (
        f"apt upgraded nvidia-open 10 min ago (`apt-get upgrade -y`, asked for by uid 1000 (alice), {log}:2)"
    )
    ours = time.strftime("%Y-%m-%d  %H:%M:%S", time.localtime(NOW - 640))
    earlier = f"Start-Date: {ours}\nCommandline: ours\nUpgrade: nvidia-open:amd64 (1, 2)\nEnd-Date: {ours}\n\n"
    history.write_text(earlier + entry.format(""))
    assert "(unattended-upgrade," in str(witness.who(asked))
    assert packages.who(["other"], NOW - 3600) is None
    assert packages.who(["nvidia-open"], NOW - 60) is None


def test_no_time_left_means_no_word(journal) -> None:
    witness = journal((600, "/sbin/sysctl -w vm.swappiness=60"))
    witness.deadline = 0
    assert witness.who(change("vm.swappiness", "60\n")) is None


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("/usr/bin/mysql --password=geheim -e x", "mysql --password=*** -e x"),
        ("curl -H 'Authorization: Bearer abc.def' x", "curl -H 'Authorization: ***' x"),
        ("env HF_TOKEN=hf_abc hf download x", "env HF_TOKEN=*** hf download x"),
        ("curl https://me:geheim@host/x", "curl https://***@host/x"),
        ("curl -u me:geheim host", "curl -u *** host"),
        ("vllm serve --api-key geheim m", "vllm serve --api-key *** m"),
        ("rm /etc/provision/secrets/vllm.env", "rm /etc/provision/secrets/vllm.env"),
    ],
)
def test_what_follows_words_of_secrets_is_not_shown(line, shown) -> None:
    told = words.command(line)
    assert told.replace("***'", "***") == shown.replace("***'", "***")
    assert "geheim" not in told
    assert "abc" not in told


def test_times_in_words() -> None:
    noon = time.mktime((2026, 11, 22, 12, 0, 0, 0, 0, -1))
    assert words.ago(noon - 40, noon) == "40 s ago"
    assert words.ago(noon - 600, noon) == "10 min ago"
    assert words.ago(noon - 4 * 3600, noon) == "4 h ago"
    assert words.ago(noon - 24 * 3600, noon) == "yesterday at 12:00"
    assert words.ago(noon - 72 * 3600, noon) == "on 2026-11-19 at 12:00"


def test_provision_and_ansible_blame_not_themselves(journal) -> None:
    look = "/bin/sh -c 'echo provision.sudo=yes#012exec python3 /run/provision/verify-1/verify.py --stages ray,vllm'"
    task = "/bin/sh -c 'echo BECOME-SUCCESS-abc ; sysctl -w vm.swappiness=1'"
    theirs = "/usr/sbin/sysctl -w vm.swappiness=60"
    assert "vm.swappiness=60" in str(journal((1, task), (2, look), (300, theirs)).who(change("vm.swappiness")))
    assert journal((1, task), (2, look)).who(change("vm.swappiness")) is None
