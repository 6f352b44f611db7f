"""What a host says of itself before anything else is asked of it, and whether that will do."""

from __future__ import annotations

from collections.abc import Mapping

from provision.inventory.model import Host
from provision.ssh.trouble import Trouble, missing_python, no_sudo, unsupported

SUPPORTED = {("debian", "12"), ("ubuntu", "22.04"), ("ubuntu", "24.04")}


def told(text: str) -> dict[str, str]:
    """The facts among the lines that a host said, whatever else its login prints."""
    lines = (line[10:].partition("=") for line in text.splitlines() if line.startswith("provision."))
    return {key: value.strip() for key, _, value in lines}


def judge(host: Host, facts: Mapping[str, str]) -> Trouble | None:
    """What keeps a host that answers from being used, by what it said of itself."""
    if (facts.get("os"), facts.get("release")) not in SUPPORTED:
        return unsupported(facts.get("name") or "of an unknown kind")
    if facts.get("sudo") != "yes" and not (facts.get("uid") == "0" and host.user == "root"):
        return no_sudo(host, told=bool(sudo_password(host)))
    return None if facts.get("python") else missing_python(host)


def python_of(host: Host) -> str:
    """The Python that modules run with there."""
    python = str(host.variables.get("ansible_python_interpreter") or "python3")
    return "python3" if python.startswith("auto") else python


def sudo_password(host: Host) -> str:
    """What sudo is told there if it asks; empty where it does not."""
    names = ("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass")
    return next((str(host.variables[name]) for name in names if host.variables.get(name)), "")
