"""Asking hosts as root: through the system's ssh against a real server, and the login's script with a sudo that tells."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import paramiko
import pytest
from ansible.plugins.connection.ssh import Connection

from provision.content import content_root
from provision.converge.environment import environment
from provision.inventory.model import Host
from provision.ssh import Answer, Call, call, fit, reach
from provision.ssh.options import control_directory, ssh_command
from provision.ssh.reach import Reach

# By this name the package has its function.
CALL = sys.modules["provision.ssh.call"]
READY = "provision.os=debian\nprovision.release=12\nprovision.name=Debian 12\nprovision.uid=1000\n"
ROOT = "provision.sudo=yes\nprovision.python=yes\nprovision.begin\n"
needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="no ssh client here")


def host(server=None, **changes) -> Host:
    known = ("-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "GlobalKnownHostsFile=/dev/null") if server else ()
    fields = {"name": "n1", "address": "127.0.0.1", "user": "ops", "port": server.port if server else None}
    fields |= {"key_file": server.key_file if server else None, "ssh_args": known, "variables": {}, "groups": ()}
    return Host(**{**fields, **changes})


def local(**variables) -> Host:
    return host(user=None, variables={"ansible_connection": "local", **variables})


def one(asked: Host, script: str = "cat", text: str = "", **how) -> Answer:
    (answer,) = call([Call(asked, script, text)], **how)
    return answer


@pytest.fixture
def ready(server) -> Iterator:
    """A server that answers as a host does, and no connection to it that is kept."""
    server.know()
    server.answer = f"a greeting\n{READY}{ROOT}the answer\n"
    server.key_file.chmod(0o600)
    yield server
    subprocess.run([*ssh_command(host(server))[:-1], "-O", "exit", "127.0.0.1"], capture_output=True, check=False)


@pytest.fixture
def sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sudo that wants the password `right`, except where the file `free` exists; it keeps what it was called with."""
    program = tmp_path / "bin/sudo"
    program.parent.mkdir()
    program.write_text(f"""#!/bin/sh
echo "$*" >> {tmp_path}/calls
if [ "$1" = -n ]; then [ -e {tmp_path}/free ] || exit 1; shift; exec "$@"; fi
[ "$1" = -k ] && shift
shift 3
IFS= read -r word
[ "$word" = right ] || exit 1
exec "$@"
""")
    program.chmod(0o755)
    (tmp_path / "free").touch()
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return tmp_path


@pytest.fixture
def supported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs these tests counts as supported."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    system = (release["ID"].strip('"'), release.get("VERSION_ID", "").strip('"'))
    monkeypatch.setattr(fit, "SUPPORTED", {system})


@needs_ssh
def test_a_host_answers_through_ssh(ready) -> None:
    answer = one(host(ready), "echo it")
    assert (answer.trouble, answer.text, answer.code) == (None, "the answer\n", 0)
    assert "sudo -n /bin/sh -c" in ready.asked
    assert "echo it" in ready.asked


@needs_ssh
def test_answers_come_as_they_are_ready_and_return_in_order(ready) -> None:
    told: list[str] = []
    hosts = [host(ready, name=f"n{number}") for number in range(4)]
    answers = call([Call(each, "true") for each in hosts], on_answer=lambda answer: told.append(answer.host.name))
    assert [answer.host.name for answer in answers] == ["n0", "n1", "n2", "n3"]
    assert sorted(told) == ["n0", "n1", "n2", "n3"]


@needs_ssh
def test_an_unknown_key_is_refused_whatever_the_arguments_say(ready) -> None:
    ready.known_hosts.write_text("")
    off = ("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={ready.known_hosts}")
    answer = one(host(ready, ssh_args=off))
    assert answer.trouble is not None
    assert answer.trouble.kind == "unknown_key"
    assert ready.asked == ""


@needs_ssh
def test_a_wrong_key_is_told_in_words(ready, tmp_path) -> None:
    other = tmp_path / "other"
    paramiko.RSAKey.generate(2048).write_private_key_file(str(other))
    assert one(host(ready, key_file=other)).trouble.kind == "denied"


@needs_ssh
def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    trouble = one(host(port=port)).trouble
    assert (trouble.kind, trouble.unreachable) == ("refused", True)


@needs_ssh
def test_a_connection_that_fell_silent_is_not_waited_for(ready, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CALL, "GREETING_S", 1)
    monkeypatch.setattr(ready, "check_channel_exec_request", lambda channel, command: True)
    start = time.monotonic()
    monkeypatch.setattr(reach, "reach", lambda hosts: [Reach("n1")])
    trouble = one(host(ready)).trouble
    assert (trouble.kind, trouble.unreachable) == ("silent", True)
    assert time.monotonic() - start < 10


def test_a_password_for_the_login_takes_the_other_way(ready, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CALL, "ssh_command", lambda _host: pytest.fail("ssh cannot give a password"))
    assert one(host(ready, variables={"ansible_password": "pw"})).text == "the answer\n"


def test_where_ssh_is_not_installed(ready, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert one(host(ready), text="x" * 100_000).text == "the answer\n"


def test_root_gets_the_text_and_the_script(sudo: Path, supported: None) -> None:
    answer = one(local(), "read -r first; echo got $first; echo oops >&2; exit 3", "hello\nworld\n")
    assert (answer.trouble, answer.text, answer.code, answer.error) == (None, "got hello\n", 3, "oops")


@pytest.mark.parametrize("free", [True, False])
def test_sudo_is_told_its_password_and_the_script_never_sees_it(sudo: Path, supported: None, free: bool) -> None:
    if not free:
        (sudo / "free").unlink()
    answer = one(local(ansible_become_password="right"), "cat; echo; tr '\\0' ' ' < /proc/$$/cmdline", "hello\n")
    assert answer.trouble is None
    assert answer.text.startswith("hello\n\n")
    assert "right" not in answer.text + (sudo / "calls").read_text()


def test_a_wrong_password_for_sudo(sudo: Path, supported: None) -> None:
    (sudo / "free").unlink()
    answer = one(local(ansible_become_password="wrong"), "echo never", "x" * 200_000)
    assert answer.trouble.kind == "no_sudo"
    assert "refuses the password" in answer.trouble.message
    assert answer.text == ""


def test_sudo_that_wants_a_password_nobody_gave(sudo: Path, supported: None) -> None:
    (sudo / "free").unlink()
    assert one(local(), "echo never", "x" * 200_000).trouble.kind == "no_sudo"


def test_a_host_without_python(sudo: Path, supported: None) -> None:
    answer = one(local(ansible_python_interpreter="/no/python"), "echo never")
    assert (answer.trouble.kind, answer.text) == ("no_python", "")


def test_an_operating_system_that_is_not_supported(sudo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "SUPPORTED", set())
    assert one(local(), "echo").trouble.kind == "unsupported_os"


def test_a_script_that_hangs(sudo: Path, supported: None) -> None:
    trouble = one(local(), "exec sleep 30", timeout=1).trouble
    assert (trouble.kind, trouble.unreachable) == ("silent", True)


def test_a_defect_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CALL, "login", lambda _call: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one(host())


def test_ssh_and_ansible_share_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ops")  # short: a socket's name may not be long
    monkeypatch.delenv("ANSIBLE_SSH_CONTROL_PATH_DIR", raising=False)
    ours = ssh_command(host(port=2201))
    (path,) = (word for word in ours if word.startswith("ControlPath="))
    name = Connection._create_control_path("127.0.0.1", 2201, "ops") % {"directory": control_directory()}
    assert path == f'ControlPath="{name}"'
    told = environment(content_root())
    assert told["ANSIBLE_SSH_CONTROL_PATH_DIR"] == "/home/ops/.ansible/cp"
    assert set(shlex.split(told["ANSIBLE_SSH_ARGS"])) <= set(ours)


def test_the_inventorys_own_ssh_arguments_replace_ours_as_they_do_for_ansible() -> None:
    plain = ssh_command(host(variables={"ansible_ssh_args": "-C"}, ssh_args=("-C",)))
    assert not any("Control" in word for word in plain)
    own = ssh_command(host(ssh_args=("-o", "ControlPath=/x/%C")))
    assert [word for word in own if "ControlPath" in word] == ["ControlPath=/x/%C"]


def test_a_socket_that_would_have_too_long_a_name_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSIBLE_SSH_CONTROL_PATH_DIR", "/x" * 60)
    assert "ControlPath=none" in ssh_command(host())


def test_paramiko_is_loaded_only_where_openssh_does_not_do() -> None:
    loaded = (
        "import sys, provision.cli.bootstrap, provision.cli.drift; print({'paramiko', 'fabric'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
