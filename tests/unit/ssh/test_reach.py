from __future__ import annotations

import socket
import time
from pathlib import Path

import paramiko
import pytest

from provision.inventory.model import Host
from provision.ssh import connect
from provision.ssh.reach import Reach, reach


def host(server=None, name="n1", **changes) -> Host:
    known = (
        ()
        if server is None
        else ("-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "GlobalKnownHostsFile=/dev/null")
    )
    fields = {
        "name": name,
        "address": "127.0.0.1",
        "user": "ops",
        "port": server.port if server else None,
        "key_file": server.key_file if server else None,
        "ssh_args": known,
        "variables": {},
        "groups": (),
    }
    return Host(**{**fields, **changes})


def one(target: Host) -> Reach:
    (result,) = reach([target])
    return result


def test_a_ready_host(server):
    server.know()
    found = one(host(server))
    assert found.trouble is None
    assert (found.boot_id, found.python, found.os) == ("b-1", "3.11.2", "Debian GNU/Linux 12 (bookworm)")


def test_many_times_in_a_row(server):
    server.know()
    assert {result.trouble for result in reach([host(server, name=f"n{number}") for number in range(16)])} == {None}


def test_a_password_for_sudo_is_given_and_nothing_else_is(server):
    server.know()
    assert one(host(server)).trouble is None
    assert "sudo -n" in server.asked
    assert one(host(server, variables={"ansible_become_password": "pw"})).trouble is None
    assert server.told == "pw\n"
    assert "pw" not in server.asked.replace("password", "")


def test_an_unknown_key_is_refused(server):
    server.known_hosts.write_text("")
    trouble = one(host(server)).trouble
    assert (trouble.kind, trouble.unreachable) == ("unknown_key", False)
    assert server.host_key.fingerprint in trouble.message
    assert f"ssh-keyscan -p {server.port} 127.0.0.1 >> {server.known_hosts}" in trouble.hint


def test_a_changed_key_shows_both_fingerprints(server):
    old = paramiko.RSAKey.generate(2048)
    server.know(old)
    trouble = one(host(server)).trouble
    assert trouble.kind == "changed_key"
    assert old.fingerprint in trouble.message
    assert server.host_key.fingerprint in trouble.message
    assert f"ssh-keygen -f {server.known_hosts} -R '[127.0.0.1]:{server.port}'" in trouble.hint


def test_turning_verification_off_in_ssh_arguments_changes_nothing(server):
    server.known_hosts.write_text("")
    args = ("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={server.known_hosts}")
    assert one(host(server, ssh_args=args)).trouble.kind == "unknown_key"


def test_a_wrong_key_is_denied(server, tmp_path):
    server.know()
    paramiko.RSAKey.generate(2048).write_private_key_file(str(tmp_path / "other"))
    trouble = one(host(server, key_file=tmp_path / "other")).trouble
    assert trouble.kind == "denied", trouble
    assert str(tmp_path / "other") in trouble.message


def test_a_key_file_that_is_not_there(server, tmp_path):
    server.know()
    assert one(host(server, key_file=tmp_path / "gone")).trouble.kind == "no_key_file"


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("provision.sudo=yes\n", "", "no_sudo"),
        ("provision.python=3.11.2", "provision.python=", "no_python"),
        ("provision.release=12", "provision.release=11", "unsupported_os"),
    ],
)
def test_what_a_host_lacks(server, before, after, kind):
    server.know()
    server.answer = server.answer.replace(before, after)
    trouble = one(host(server)).trouble
    assert (trouble.kind, trouble.unreachable) == (kind, False)
    assert trouble.hint


def test_nothing_listens():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    trouble = one(host(port=port)).trouble
    assert (trouble.kind, trouble.unreachable) == ("refused", True)


def test_a_name_that_does_not_resolve():
    trouble = one(host(address="no-such-host.invalid")).trouble
    assert (trouble.kind, trouble.unreachable) == ("dns", True)


def test_silent_hosts_time_out_together(monkeypatch):
    monkeypatch.setattr(connect, "TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()
        found = reach([host(name=f"n{number}", port=port) for number in range(8)])
    assert time.monotonic() - start < 8  # one by one they would take as many seconds
    assert {result.trouble.kind for result in found} == {"no_greeting"}, found[0]
    assert [result.host for result in found] == [f"n{number}" for number in range(8)]


def test_local_hosts_are_not_connected_to():
    assert one(host(variables={"ansible_connection": "local"})).trouble is None


def test_arguments_of_ssh_come_before_the_users_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host 10.*\n  Port 2200\n  ProxyJump gate\n  User fromconfig\n")
    args = ("-oPort=2201", "-J", "other", "-o", "UserKnownHostsFile=/x/known", "-v")
    found = connect.ssh_config(host(address="10.0.0.1", ssh_args=args)).lookup("10.0.0.1")
    assert (found["port"], found["proxyjump"], found["user"]) == ("2201", "other", "fromconfig")
    assert connect.ssh_config(host(address="10.0.0.1")).lookup("10.0.0.1")["proxyjump"] == "gate"


def test_jump_hosts_are_verified_too(tmp_path: Path):
    link = connect.connection(host(address="10.0.0.1", ssh_args=("-J", "gate")))
    assert type(link.client._policy).__name__ == "_Refuse"
    assert type(link.gateway.client._policy).__name__ == "_Refuse"
