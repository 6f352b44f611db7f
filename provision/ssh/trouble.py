"""What keeps a host from being used, in one sentence, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

from provision.inventory.model import Host

SSH_PORT = 22
TIMEOUT = 10  # seconds, each for the connection, the server's greeting, the login and the answer


@dataclass(frozen=True)
class Trouble:
    """Why a host cannot be used. `unreachable`: nothing answered at all, as opposed to something that said no."""

    kind: str
    message: str
    hint: str
    unreachable: bool = False


def misconfigured(host: Host, error: Exception) -> Trouble:
    """There was nothing to connect with: the inventory's ssh settings or the user's ssh_config make no sense."""
    return Trouble(
        "ssh_config", f"its SSH settings cannot be used: {error}", f"What ssh makes of them:  {command(host, '-G')}"
    )


def failed(host: Host, said: str) -> Trouble:
    """SSH does not come through, for a reason that only its own words tell."""
    return Trouble("ssh", f"SSH to {where(host)} failed: {said}", f"See what ssh says:  {command(host, '-v')}")


def silent(host: Host, seconds: float) -> Trouble:
    """The login works, and what was asked is not answered."""
    message = f"{where(host)} did not answer within {seconds:.0f} s, though it was logged in to: the host may hang."
    return unreachable("silent", message, f"What does it do?  {command(host)} uptime")


def timed_out(host: Host) -> Trouble:
    """Nobody answers at all."""
    message = f"{where(host)} did not answer within {TIMEOUT} s."
    return unreachable("timeout", message, f"Is it up?  ping {host.address}")


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
    return Trouble("no_python", "it has no python3.", f"{command(host, '-t')} sudo apt-get install -y python3")


def unsupported(name: str) -> Trouble:
    """The operating system is none that the roles know."""
    return Trouble(
        "unsupported_os",
        f"its operating system is {name}; supported are Debian 12, Ubuntu 22.04 and Ubuntu 24.04.",
        "Install one of these, or take the host out of the inventory.",
    )


def unreachable(kind: str, message: str, hint: str) -> Trouble:
    """A trouble with a host from which nothing comes."""
    return Trouble(kind, message, hint, unreachable=True)


def where(host: Host) -> str:
    """A host's address, with its port where that is not the usual one."""
    return host.address if host.port in (None, SSH_PORT) else f"{host.address}:{host.port}"


def command(host: Host, *flags: str) -> str:
    """The ssh command with which a person logs in there."""
    words = ["ssh", *flags]
    words += [] if host.port in (None, SSH_PORT) else ["-p", str(host.port)]
    words += ["-i", str(host.key_file)] if host.key_file else []
    return " ".join([*words, f"{host.user}@{host.address}" if host.user else host.address])
