"""What the modules of the driver and of the GPUs share: what is loaded, what nvidia-smi says, NVIDIA's repository."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import urllib.error
import urllib.request
from typing import NamedTuple, Sequence

from ansible.module_utils.provision_host import HostError, read_text, run

# The long id of the key that signs NVIDIA's repositories for Debian and Ubuntu (file 3bf863cc.pub beside each of them).
NVIDIA_KEY_ID = "A4B469963BF863CC"

SLOWDOWNS = tuple(f"clocks_event_reasons.{name}" for name in ("sw_power_cap", "hw_slowdown", "sw_thermal_slowdown"))
LIMITS = ("power.limit", "power.default_limit", "power.min_limit", "power.max_limit")
MODES = (
    "persistence_mode",
    "compute_mode",
    "ecc.mode.current",
    "ecc.mode.pending",
    "mig.mode.current",
    "mig.mode.pending",
)
CLOCKS = ("clocks.sm", "clocks.max.sm", "clocks.mem", "utilization.gpu")
# Memory's before graphics', as nvidia-smi -ac takes them. Deprecated: a driver may come that does not know them.
APPLICATION = tuple(
    f"clocks.{kind}.{part}" for kind in ("applications", "default_applications") for part in ("memory", "graphics")
)
KNOWN = ("index", *MODES, *LIMITS, *CLOCKS, *SLOWDOWNS)
FIELDS = (*KNOWN, *APPLICATION)  # what the settings of a GPU are judged by
TOGETHER = (*FIELDS, "compute_cap", "fabric.state", "fabric.status")


class LibraryMismatchError(HostError):
    """The driver's libraries are of another version than the loaded kernel module, so nvidia-smi says nothing."""


def loaded_version() -> str:
    """The version of the kernel module that is loaded; empty for none."""
    text = read_text("/proc/driver/nvidia/version") or read_text("/sys/module/nvidia/version") or ""
    found = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", text)
    return found.group(1) if found else ""


class KernelModule(NamedTuple):
    """NVIDIA's kernel module: its version, empty for none, and its flavour, `open` or `proprietary`."""

    version: str
    flavour: str


def in_words(module: KernelModule) -> str:
    """A kernel module as a message names it."""
    return f"{module.version} ({module.flavour})" if module.version else "none"


def told_apart(loaded: KernelModule, wanted: KernelModule) -> str:
    """In which way another kernel module is loaded than the wanted one."""
    if loaded.version != wanted.version:
        return f"driver {loaded.version} is loaded, {wanted.version} is wanted"
    return f"driver {loaded.version} is loaded with {loaded.flavour} kernel modules, {wanted.flavour} ones are wanted"


def loaded_module() -> KernelModule:
    """The module that is loaded."""
    is_open = "Open Kernel Module" in (read_text("/proc/driver/nvidia/version") or "Open Kernel Module")
    return KernelModule(loaded_version(), "open" if is_open else "proprietary")


def built_module(kernel: str) -> KernelModule:
    """The module that a kernel would load: the one on disk, which was built for it when the packages were installed."""
    version, licence = (
        run(["modinfo", "-k", kernel, "-F", field, "nvidia"], check=False).out.strip()
        for field in ("version", "license")
    )
    return KernelModule(version, "open" if "MIT" in licence else "proprietary")


def next_kernel() -> str:
    """The release of the kernel that the next boot starts, as far as links tell; where there are none, the running."""
    for link in ("/vmlinuz", "/boot/vmlinuz"):
        if os.path.islink(link) and os.path.exists(link):  # else it is left over from a kernel that is gone
            return os.path.basename(os.path.realpath(link)).partition("-")[2] or os.uname().release
    return os.uname().release


def kernels() -> list[str]:
    """The kernel that runs and, where that is another, the one that the next boot starts."""
    return list(dict.fromkeys((os.uname().release, next_kernel())))


def number(version: str) -> tuple[int, ...]:
    """A version to compare with others."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


MIG_AT_ONCE = (9, 0)  # compute capability: since Hopper MIG changes without a reset


def is_mig_at_once(row: dict[str, str]) -> bool:
    """Whether a card, as a row with its `compute_cap`, is split into instances without a reset."""
    return number(row["compute_cap"]) >= MIG_AT_ONCE


def is_nouveau_busy() -> bool:
    """Whether nouveau is loaded, none of NVIDIA's modules is, and something holds it: then only a reboot removes it."""
    holders = read_text("/sys/module/nouveau/refcnt")
    return holders is not None and holders.strip() not in ("", "0") and not loaded_version()


def query_gpus(fields: Sequence[str], timeout_s: float | None = None) -> list[dict[str, str]]:
    """One row per GPU with these fields of `nvidia-smi --query-gpu`, values without units; none without a driver.

    What modules ask for is asked for together, in the same words each time: a verifier that remembers answers then has
    all of them for one start of nvidia-smi, which takes longer than anything else that it does.
    """
    all_of_them = TOGETHER if set(fields) <= set(TOGETHER) else tuple(fields)
    try:
        rows = _query(all_of_them, timeout_s)
    except HostError as error:
        if all_of_them == tuple(fields) or "not a valid field" not in str(error):
            raise
        rows = _query(fields, timeout_s)  # a driver that does not know all of them
    return [{field: row[field] for field in fields} for row in rows]


def _query(fields: Sequence[str], timeout_s: float | None) -> list[dict[str, str]]:
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    asked = run(command, check=False, timeout_s=timeout_s)
    if asked.rc == 127:
        return []
    rows = [[value.strip() for value in line.split(",")] for line in asked.out.splitlines()]
    if asked.rc != 0:
        said = " ".join(",".join(row) for row in rows if not row[0].isdigit()).strip() or asked.err.strip()
        kind = LibraryMismatchError if "version mismatch" in said else HostError
        raise kind(
            f"nvidia-smi ended with {asked.rc}: {said}. Look on the host at: journalctl -k -g 'NVRM|Xid'. A GPU that "
            "fell off the bus comes back with a reboot or a power cycle; a mismatch is repaired by the driver stage."
        )
    return [{field: row[place] for place, field in enumerate(fields)} for row in rows if len(row) == len(fields)]


def system_name() -> str:
    """The host's system as NVIDIA names its repositories: debian12, ubuntu2404."""
    text = read_text("/etc/os-release") or ""
    name, version = (re.search(rf'^{key}="?([\w.]+)', text, re.MULTILINE) for key in ("ID", "VERSION_ID"))
    return (name.group(1) + version.group(1).replace(".", "")) if name and version else "unknown"


def repository_text(url: str, suite: str, components: Sequence[str], keyring: str) -> tuple[str, str]:
    """The repository's URL for this host, and its entry for apt."""
    url = url.replace("{os}", system_name()).rstrip("/") + "/"
    parts = f"Components: {' '.join(components)}\n" if components else ""
    head = "# Written by provision (role driver).\n"
    return url, f"{head}Types: deb\nURIs: {url}\nSuites: {suite}\n{parts}Signed-By: {keyring}\n"


ARMOUR = re.compile(
    r"\s*-----BEGIN [^\n]+-----\n(?:[^\n]+: [^\n]*\n)*\n"
    r"(?P<body>[A-Za-z0-9+/=\n]+)\n=(?P<crc>\S{4})\n-----END [^\n]+-----\s*"
)


def packets(armoured: str) -> bytes:
    """What an armoured file holds; nothing where it is not one whole block with its checksum (RFC 4880, 6.1)."""
    found = ARMOUR.fullmatch(armoured.replace("\r", ""))
    try:
        data = base64.b64decode(found["body"]) if found else b""
        wanted = int.from_bytes(base64.b64decode(found["crc"]), "big") if found else 0
    except ValueError:
        return b""
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc = crc << 1 ^ (0x1864CFB if crc & 0x800000 else 0)
    return data if crc == wanted else b""


def key_id(armoured: str) -> str:
    """The long id of the first key in an armoured file: the end of the SHA-1 of its packet (RFC 4880, 12.2)."""
    data = packets(armoured)
    if len(data) < 6 or not data[0] & 0x80:
        return ""
    if data[0] & 0x40:  # new packet format; a key is longer than 191 bytes and shorter than 8384
        start, length = 3, ((data[1] - 192) << 8) + data[2] + 192
    else:
        width = 1 << (data[0] & 3)
        start, length = 1 + width, int.from_bytes(data[1 : 1 + width], "big")
    packet = data[start : start + length]
    digest = hashlib.sha1(b"\x99" + len(packet).to_bytes(2, "big") + packet, usedforsecurity=False).hexdigest()
    return digest[-16:].upper()


def is_nvidias(armoured: str) -> bool:
    """Whether a file holds NVIDIA's key, whole and alone."""
    return key_id(armoured) == NVIDIA_KEY_ID


def fetch_key(url: str) -> str:
    """NVIDIA's public key from beside the repository, refused unless it is the one that is known."""
    place = f"{url}{NVIDIA_KEY_ID[-8:].lower()}.pub"
    if not place.startswith("https://"):
        raise HostError(
            f"The key of {url} is not fetched without TLS. Set driver_repository_key to a file that holds it."
        )
    try:
        with urllib.request.urlopen(place, timeout=60) as answer:  # noqa: S310 (only https, above)
            text = str(answer.read().decode("ascii", "replace"))
    except (OSError, urllib.error.URLError) as error:
        raise HostError(
            f"The repository's key cannot be fetched from {place}: {error}. If this host has no way there, set "
            "driver_repository_url to a mirror and driver_repository_key to a file with the key."
        ) from None
    if not is_nvidias(text):
        raise HostError(
            f"The key at {place} is {key_id(text) or 'unreadable'}, not NVIDIA's {NVIDIA_KEY_ID}. Stop here."
        )
    return text
