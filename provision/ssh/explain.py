"""What paramiko's errors mean, in words. Apart from `trouble`, since to load paramiko takes longer than most calls."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

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
from provision.ssh.connect import UnknownHostKeyError, connection, known_hosts
from provision.ssh.trouble import SSH_PORT, TIMEOUT, Trouble, command, failed, timed_out, unreachable, where


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
        f"Check user and key:  {command(host)}  (ansible_user, ansible_ssh_private_key_file)",
    )


def _protocol(host: Host, error: Exception, link: Connection | None) -> Trouble:
    transport = link.client.get_transport() if link else None
    if transport is not None and not transport.initial_kex_done:
        message = f"{where(host)} takes connections, but no SSH server greets within {TIMEOUT} s: the host may hang."
        return unreachable("no_greeting", message, "Look at its console.")
    if transport is not None and not transport.is_authenticated():
        return _denied(host, error)
    return failed(host, str(error))


def _no_answer(host: Host, error: Exception) -> Trouble:
    place = where(host)
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return unreachable("dns", f"its name {host.address} does not resolve.", "Set ansible_host to its address.")
        if isinstance(cause, ConnectionRefusedError):
            return unreachable("refused", f"{place} refuses connections: no SSH server.", "Start sshd at its console.")
        if cause.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
            return unreachable("no_route", f"there is no route to {place}.", f"Is it up?  ping {host.address}")
    if isinstance(error, FileNotFoundError):
        return Trouble("no_key_file", f"the key {error.filename} does not exist.", "See ansible_ssh_private_key_file.")
    if isinstance(error, (TimeoutError, CommandTimedOut, NoValidConnectionsError)):
        return timed_out(host)
    return unreachable(
        "broken", f"{place} broke off the connection: {error}.", f"What ssh says:  {command(host, '-v')}"
    )


def _causes(error: Exception) -> Iterator[OSError]:
    """An error of several addresses holds one for each."""
    causes = error.errors.values() if isinstance(error, NoValidConnectionsError) else [error]
    yield from (cause for cause in causes if isinstance(cause, OSError))


def _print(key: PKey) -> str:
    return f"{_kind(key).upper()} {key.fingerprint}"


def _kind(key: PKey) -> str:
    name = str(key.get_name())
    return name.removeprefix("ssh-").split("-")[0]


def _entry(hostname: str, host: Host) -> str:
    plain = host.port in (None, SSH_PORT) or hostname.startswith("[")
    return hostname if plain else f"[{hostname}]:{host.port}"
