"""What the lab takes over from the machine that it runs on: tools, package sources, name servers, certificates."""

from __future__ import annotations

import configparser
import importlib.util
import ipaddress
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from provision.errors import LabError

RELEASE = "bookworm"
_SUITES = {RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security"}
_TOOLS = {
    "fusermount3": "fuse3",
    "ip": "iproute2",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "nft": "nftables",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "systemd-nspawn": "systemd-container",
}


def require_tools() -> None:
    """One error that names everything the lab misses on this machine, and the command that installs it."""
    if os.geteuid() != 0:
        raise LabError("The lab makes containers, mounts and a bridge, so it needs root: run the command with sudo.")
    packages = sorted({package for tool, package in _TOOLS.items() if not shutil.which(tool)})
    if packages:
        names = " ".join(packages)
        raise LabError(f"The lab misses programs on this machine. Install them: apt-get install --yes {names}")
    if not importlib.util.find_spec("mfusepy"):
        raise LabError("The lab misses the Python package mfusepy. Install it: pip install 'provision[lab]'")
    if not Path("/dev/fuse").exists():
        raise LabError("The lab simulates kernel files with FUSE, and /dev/fuse is missing. Load it: modprobe fuse")


def debian_sources(apt: Path = Path("/etc/apt")) -> str:
    """The machine's own Debian sources of the release that hosts run, as deb822 text.

    Only Debian's: what else the machine installs from is no business of a bare server. LabError if it has none.
    """
    stanzas: list[str] = []
    for path in sorted(apt.glob("sources.list.d/*.sources")):
        for stanza in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")):
            fields = dict(re.findall(r"^([A-Za-z-]+):\s*(.+)$", stanza, re.MULTILINE))
            if "deb" in fields.get("Types", "").split() and fields.get("Enabled", "yes") != "no":
                stanzas += _stanza(fields.get("URIs", ""), fields.get("Suites", ""), fields.get("Components", ""))
    for path in [apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list"))]:
        lines = path.read_text(encoding="utf-8") if path.exists() else ""
        for uri, suite, components in re.findall(r"^deb\s+(?:\[.*?\]\s+)?(\S+)\s+(\S+)\s+(.+)$", lines, re.MULTILINE):
            stanzas += _stanza(uri, suite, components)
    if not stanzas:
        raise LabError(
            f"The lab's hosts run Debian {RELEASE}, and this machine's apt knows no source of it."
            f" Add your mirror: a file in {apt}/sources.list.d with Suites: {RELEASE} {RELEASE}-updates"
        )
    return "\n".join(dict.fromkeys(stanzas))


def _stanza(uris: str, suites: str, components: str) -> list[str]:
    debian = [uri for uri in uris.split() if uri.rstrip("/").rsplit("/", 1)[-1] in {"debian", "debian-security"}]
    wanted = [suite for suite in suites.split() if suite in _SUITES]
    if not debian or not wanted or "main" not in components.split():
        return []
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    return [
        f"Types: deb\nURIs: {' '.join(debian)}\nSuites: {' '.join(wanted)}\nComponents: main\nSigned-By: {keyring}\n"
    ]


def name_servers(etc: Path = Path("/etc"), run: Path = Path("/run")) -> str:
    """The text of a `resolv.conf` that works from a host, to which the machine's loopback is not the machine's."""
    for path in (etc / "resolv.conf", run / "systemd/resolve/resolv.conf"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        usable = [line for line in lines if not line.startswith("nameserver") or not _loopback(line)]
        if any(line.startswith("nameserver") for line in usable):
            return "\n".join(line for line in usable if line and not line.startswith(("#", ";"))) + "\n"
    raise LabError("No name server in /etc/resolv.conf can be reached from a simulated host: all are on the loopback.")


def _loopback(line: str) -> bool:
    try:
        return ipaddress.ip_address(line.split()[1].split("%", maxsplit=1)[0]).is_loopback
    except (IndexError, ValueError):
        return True


def certificates(directory: Path = Path("/usr/local/share/ca-certificates")) -> list[str]:
    """The site's own certificate authorities, as this machine trusts them."""
    return sorted(str(path) for path in directory.glob("**/*.crt"))


@dataclass(frozen=True)
class PythonIndex:
    """Where this machine's Python packages come from: `find_links` are directories; the others URLs or None."""

    find_links: tuple[str, ...]
    index_url: str | None
    extra_index_urls: tuple[str, ...]


def python_index() -> PythonIndex:
    """What pip and uv are told by the environment and pip's configuration files, the environment first.

    Indexes that are files of this machine (`file://`) are left out: no host could read them.
    """
    links = _setting("find-links", "UV_FIND_LINKS", "PIP_FIND_LINKS")
    index = [url for url in _setting("index-url", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL") if _remote(url)]
    extra = _setting("extra-index-url", "UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL")
    directories = [link.removeprefix("file://") for link in links]
    return PythonIndex(
        tuple(str(Path(link).resolve()) for link in directories if Path(link).is_dir()),
        index[0] if index else None,
        tuple(url for url in extra if _remote(url)),
    )


def _remote(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _setting(option: str, *variables: str) -> list[str]:
    for variable in variables:
        if value := os.environ.get(variable):
            return re.split(r"[\s,]+", value.strip())
    files = [os.environ.get("PIP_CONFIG_FILE", ""), "~/.config/pip/pip.conf", "~/.pip/pip.conf", "/etc/pip.conf"]
    for path in files:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(Path(path).expanduser() if path else [])
        if value := parser.get("global", option, fallback=""):
            return value.split()
    return []
