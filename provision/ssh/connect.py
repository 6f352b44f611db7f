"""A fabric connection that verifies host keys as OpenSSH would, with the options that the inventory gives to ssh.

By itself fabric accepts any host key and reads no known_hosts file; neither is ever acceptable here, nor on the way
through a jump host.
"""

from __future__ import annotations

import io
from pathlib import Path

from fabric import Config, Connection
from paramiko import MissingHostKeyPolicy, PKey, SSHClient, SSHConfig

from provision.inventory.model import Host
from provision.ssh.trouble import TIMEOUT

USER_FILES = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
SYSTEM_FILES = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
SHORT_OPTIONS = {"-p": "Port", "-l": "User", "-i": "IdentityFile", "-J": "ProxyJump"}


class UnknownHostKeyError(Exception):
    """The host showed a key, and none is known for it."""

    def __init__(self, hostname: str, key: PKey) -> None:
        super().__init__(hostname)
        self.hostname, self.key = hostname, key


class _Refuse(MissingHostKeyPolicy):  # type: ignore[misc]  # paramiko is not typed
    def missing_host_key(self, client: SSHClient, hostname: str, key: PKey) -> None:  # noqa: ARG002
        raise UnknownHostKeyError(hostname, key)


def connection(host: Host) -> Connection:
    """A connection to a host, not yet open. Use it as a context manager."""
    settings = ssh_config(host)
    found = settings.lookup(host.address)
    arguments: dict[str, object] = {"banner_timeout": TIMEOUT, "auth_timeout": TIMEOUT}
    if host.key_file:
        arguments["key_filename"] = [str(host.key_file)]
    if found.get("identitiesonly") == "yes" and (host.key_file or "identityfile" in found):
        arguments |= {"allow_agent": False, "look_for_keys": False}
    password = host.variables.get("ansible_password") or host.variables.get("ansible_ssh_pass")
    if password:
        arguments["password"] = str(password)
    link = Connection(
        host.address,
        user=host.user,
        port=host.port,
        config=Config(ssh_config=settings),
        connect_timeout=TIMEOUT,
        connect_kwargs=arguments,
    )
    _verify(link)
    return link


def ssh_config(host: Host) -> SSHConfig:
    """The user's and the system's ssh_config, with what the inventory's ssh arguments say put before them.

    `-F FILE` replaces both, as it does for ssh.
    """
    options, own = _options(host.ssh_args)
    lines = [f"Host {host.address}", *(f"    {name} {value}" for name, value in options)]
    text = "\n".join(lines) + "\nHost *\n"
    for path in [Path(own)] if own else [Path("~/.ssh/config"), Path("/etc/ssh/ssh_config")]:
        if path.expanduser().is_file():
            text += path.expanduser().read_text(encoding="utf-8", errors="replace") + "\nHost *\n"
    return SSHConfig.from_file(io.StringIO(text))


def known_hosts(link: Connection) -> list[Path]:
    """The files that hold the host keys to trust for a connection, the user's own first."""
    user = link.ssh_config.get("userknownhostsfile", " ".join(USER_FILES)).split()
    system = link.ssh_config.get("globalknownhostsfile", " ".join(SYSTEM_FILES)).split()
    return [Path(name.strip('"')).expanduser() for name in (*user, *system) if name != "none"]


def _verify(link: Connection) -> None:
    """Trust what is known and nothing else; the same for each jump host on the way."""
    link.client.set_missing_host_key_policy(_Refuse())
    for path in known_hosts(link):
        if path.is_file():
            link.client.load_system_host_keys(str(path))
    if isinstance(link.gateway, Connection):
        link.gateway.connect_timeout = TIMEOUT
        _verify(link.gateway)


def _options(arguments: tuple[str, ...]) -> tuple[list[tuple[str, str]], str | None]:
    """`-o Name=value` and the short options that ssh has for the commonest, and the file of `-F`."""
    options, own = [], None
    words = iter(arguments)
    for word in words:
        flag, attached = word[:2], word[2:]
        if flag not in ("-o", "-F", *SHORT_OPTIONS):
            continue
        value = attached or next(words, "")
        if flag == "-F":
            own = value
        elif flag == "-o":
            name, _, text = value.replace("=", " ", 1).partition(" ")
            options.append((name, text.strip()))
        else:
            options.append((SHORT_OPTIONS[flag], value))
    return options, own
