"""A small SSH server in this process: real keys, real logins, answers from a table."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
import pytest

READY = "provision.uid=1000\nprovision.sudo=yes\nprovision.python=3.11.2\nprovision.boot=b-1\nprovision.os=debian\n" \
        "provision.release=12\nprovision.name=Debian GNU/Linux 12 (bookworm)\n"  # fmt: skip


@dataclass
class Server(paramiko.ServerInterface):
    directory: Path
    answer: str = READY
    host_key: paramiko.PKey = field(default_factory=lambda: paramiko.RSAKey.generate(2048))
    user_key: paramiko.PKey = field(default_factory=lambda: paramiko.RSAKey.generate(2048))
    port: int = 0
    asked: str = ""
    told: str = ""

    def __post_init__(self) -> None:
        self.user_key.write_private_key_file(str(self.key_file))
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def key_file(self) -> Path:
        return self.directory / "user_key"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    def know(self, key: paramiko.PKey | None = None) -> None:
        key = key or self.host_key
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {key.get_name()} {key.get_base64()}\n")

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.socket.accept()
            except OSError:
                return
            transport = paramiko.Transport(client)
            transport.add_server_key(self.host_key)
            try:
                transport.start_server(server=self)
            except (paramiko.SSHException, EOFError, OSError):  # ssh hangs up on a key that it does not know
                continue

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        good = username == "ops" and key == self.user_key
        return paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self.asked = command.decode()

        def reply() -> None:
            if "read -r password" in self.asked:
                self.told = channel.makefile().readline()
            channel.sendall(self.answer.encode())
            channel.send_exit_status(0)
            channel.close()

        threading.Timer(0.3, reply).start()  # after the request was granted, which happens on return
        return True


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    made = Server(tmp_path)
    yield made
    made.socket.close()
