"""What keeps a host from being used, in one sentence, and what to do about it."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from fabric import Connection
from invoke.exceptions import CommandTimedOut, ThreadException
from paramiko import PKey
from paramiko.ssh_exception import (
    AuthenticationException,
    BadAuthenticationType,
    BadHostKeyException,
    NoValidConnectionsError,
    PasswordRequiredException,
)

from provision.inventory.model import Host
from provision.ssh.connect import TIMEOUT, UnknownHostKeyError, connection, known_hosts

SSH_PORT = 22


@dataclass(frozen=True)
class Trouble:
    """Why a host cannot be used. `unreachable`: nothing answered at all, as opposed to something that said no."""

    kind: str
    message: str
    hint: str
    unreachable: bool = False


def explain(host: Host, error: Exception, link: Connection | None) -> Trouble:
    """Put an error of connecting into words; how far `link` came tells what paramiko's own words may not."""
    if isinstance(error, ThreadException):  # fabric reads and writes in threads, and wraps what happened there
        error = error.exceptions[0].value
    if isinstance(error, BadHostKeyException):
        return _changed_key(host, error)
    if isinstance(error, UnknownHostKeyError):
        return _unknown_key(host, error)
    if isinstance(error, AuthenticationException):
        return _denied(host, error)
    if isinstance(error, (OSError, EOFError, CommandTimedOut)):
        return _no_answer(host, error)
    return _protocol(host, error, link)


def misconfigured(host: Host, error: Exception) -> Trouble:
    """There was nothing to connect with: the inventory's ssh settings or the user's ssh_config make no sense."""
    return Trouble(
        "ssh_config", f"its SSH settings cannot be used: {error}", f"What ssh makes of them:  {_command(host, '-G')}"
    )


def failed(host: Host, said: str) -> Trouble:
    """SSH does not come through, for a reason that only its own words tell."""
    return Trouble("ssh", f"SSH to {_where(host)} failed: {said}", f"See what ssh says:  {_command(host, '-v')}")


def silent(host: Host, seconds: float) -> Trouble:
    """The login works, and what was asked is not answered."""
    message = f"{_where(host)} did not answer within {seconds:.0f} s, though it was logged in to: the host may hang."
    return _unreachable("silent", message, f"What does it do?  {_command(host)} uptime")


def no_sudo(host: Host, told: bool = False) -> Trouble:
    """The login works, but cannot become root: sudo wants a password, or another one than it was `told`."""
    user = host.user or "the login user"
    if told:
        message = f"sudo refuses the password that the inventory has for {user}."
        return Trouble("no_sudo", message, "Correct ansible_become_password, or see there:  sudo -l")
    return Trouble(
        "no_sudo",
        f"{user} cannot use sudo without a password.",
        f"Allow it there:  echo '{host.user or 'USER'} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/provision"
        "  (or set ansible_become_password, in a vault)",
    )


def missing_python(host: Host) -> Trouble:
    """There is no Python to run modules with."""
    return Trouble("no_python", "it has no python3.", f"{_command(host, '-t')} sudo apt-get install -y python3")


def unsupported(name: str) -> Trouble:
    """The operating system is none that the roles know."""
    return Trouble(
        "unsupported_os",
        f"its operating system is {name}; supported are Debian 12, Ubuntu 22.04 and Ubuntu 24.04.",
        "Install one of these, or take the host out of the inventory.",
    )


def _changed_key(host: Host, error: BadHostKeyException) -> Trouble:
    file = next((path for path in known_hosts(connection(host)) if path.is_file()), "~/.ssh/known_hosts")
    return Trouble(
        "changed_key",
        f"its SSH host key has changed: known is {_print(error.expected_key)}, it shows {_print(error.key)}.",
        "Nothing was done there. If it was installed anew, forget the old key:  "
        f"ssh-keygen -f {file} -R '{_entry(error.hostname, host)}'",
    )


def _unknown_key(host: Host, error: UnknownHostKeyError) -> Trouble:
    file = known_hosts(connection(host))[0]
    port = "" if host.port in (None, SSH_PORT) else f"-p {host.port} "
    return Trouble(
        "unknown_key",
        f"its SSH host key is not known: it shows {_print(error.key)}.",
        f"Compare it with the host's own (ssh-keygen -lf /etc/ssh/ssh_host_{_kind(error.key)}_key.pub), then:  "
        f"ssh-keyscan {port}{host.address} >> {file}",
    )


def _denied(host: Host, error: Exception) -> Trouble:
    user = f" as {host.user}" if host.user else ""
    key = f" with the key {host.key_file}" if host.key_file else ""
    if isinstance(error, PasswordRequiredException):
        return Trouble(
            "locked_key",
            f"the key {host.key_file or 'for it'} is protected by a passphrase.",
            f"Unlock it for this session:  ssh-add {host.key_file or ''}".rstrip(),
        )
    taken = f" (it takes {', '.join(error.allowed_types)})" if isinstance(error, BadAuthenticationType) else ""
    return Trouble(
        "denied",
        f"it refused the login{user}{key}{taken}.",
        f"Check user and key:  {_command(host)}  (ansible_user, ansible_ssh_private_key_file)",
    )


def _protocol(host: Host, error: Exception, link: Connection | None) -> Trouble:
    transport = link.client.get_transport() if link else None
    if transport is not None and not transport.initial_kex_done:
        message = f"{_where(host)} takes connections, but no SSH server greets within {TIMEOUT} s: the host may hang."
        return _unreachable("no_greeting", message, "Look at its console.")
    if transport is not None and not transport.is_authenticated():
        return _denied(host, error)
    return failed(host, str(error))


def _no_answer(host: Host, error: Exception) -> Trouble:
    where = _where(host)
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return _unreachable("dns", f"its name {host.address} does not resolve.", "Set ansible_host to its address.")
        if isinstance(cause, ConnectionRefusedError):
            return _unreachable("refused", f"{where} refuses connections: no SSH server.", "Start sshd at its console.")
        if cause.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            return _unreachable("no_route", f"there is no route to {where}.", f"Is it up?  ping {host.address}")
    if isinstance(error, FileNotFoundError):
        return Trouble("no_key_file", f"the key {error.filename} does not exist.", "See ansible_ssh_private_key_file.")
    if isinstance(error, (TimeoutError, CommandTimedOut, NoValidConnectionsError)):
        return _unreachable("timeout", f"{where} did not answer within {TIMEOUT} s.", f"Is it up?  ping {host.address}")
    return _unreachable(
        "broken", f"{where} broke off the connection: {error}.", f"What ssh says:  {_command(host, '-v')}"
    )


def _causes(error: Exception) -> Iterator[OSError]:
    """An error of several addresses holds one for each."""
    causes = error.errors.values() if isinstance(error, NoValidConnectionsError) else [error]
    yield from (cause for cause in causes if isinstance(cause, OSError))


def _unreachable(kind: str, message: str, hint: str) -> Trouble:
    return Trouble(kind, message, hint, unreachable=True)


def _where(host: Host) -> str:
    return host.address if host.port in (None, SSH_PORT) else f"{host.address}:{host.port}"


def _command(host: Host, *flags: str) -> str:
    words = ["ssh", *flags]
    words += [] if host.port in (None, SSH_PORT) else ["-p", str(host.port)]
    words += ["-i", str(host.key_file)] if host.key_file else []
    return " ".join([*words, f"{host.user}@{host.address}" if host.user else host.address])


def _print(key: PKey) -> str:
    return f"{_kind(key).upper()} {key.fingerprint}"


def _kind(key: PKey) -> str:
    name = str(key.get_name())
    return name.removeprefix("ssh-").split("-")[0]


def _entry(hostname: str, host: Host) -> str:
    plain = host.port in (None, SSH_PORT) or hostname.startswith("[")
    return hostname if plain else f"[{hostname}]:{host.port}"
