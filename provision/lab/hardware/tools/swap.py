"""`swapon` and `swapoff` where the kernel is not the host's own: real checks of the file, and a simulated switch."""

from __future__ import annotations

import os
import sys

import state

REAL_SWAPON = "/usr/sbin/swapon.real"
PAGE = 4096
FAILED, OTHER_ERROR, BAD_SIGNATURE, USAGE, ALL_FAILED, SOME_FAILED = 2, 4, 8, 16, 32, 64


def main(program: str, arguments: list[str]) -> int:
    return _swapon(arguments) if program == "swapon" else _swapoff(arguments)


def _swapon(arguments: list[str]) -> int:
    if any(
        word.startswith(("--show", "--summary", "--help", "--version")) or word in ("-s", "-h", "-V")
        for word in arguments
    ):
        os.execv(REAL_SWAPON, ["swapon", *arguments])  # noqa: S606  # it only reads /proc/swaps
    if not arguments:
        os.execv(REAL_SWAPON, ["swapon"])  # noqa: S606
    if os.geteuid():
        sys.stderr.write("swapon: cannot open: Permission denied\n")
        return OTHER_ERROR
    priority, everything, paths = _options(arguments)
    if not everything:
        return max((_on(path, priority, quiet=False) for path in paths), default=USAGE)
    active = {swap["path"] for swap in state.read()["swaps"]}
    results = [_on(path, own, quiet=True) for path, own in fstab() if path not in active]
    if not any(results):
        return 0
    return ALL_FAILED if all(results) else SOME_FAILED


def _options(arguments: list[str]) -> tuple[int | None, bool, list[str]]:
    priority, everything, paths, rest = None, False, [], list(arguments)
    while rest:
        word, _, value = rest.pop(0).partition("=")
        if word in ("-p", "--priority"):
            priority = int(value or rest.pop(0))
        elif word in ("-a", "--all"):
            everything = True
        elif not word.startswith("-"):
            paths.append(word)
    return priority, everything, paths


def fstab() -> list[tuple[str, int | None]]:
    """The swap files that /etc/fstab wants at boot, with their priorities."""
    wanted = []
    with open("/etc/fstab", encoding="utf-8") as file:
        for line in file:
            fields = line.split("#")[0].split()
            if len(fields) >= 3 and fields[2] == "swap":  # noqa: PLR2004  # device, directory, type
                options = fields[3].split(",") if len(fields) > 3 else []  # noqa: PLR2004
                if "noauto" not in options:
                    own = next((int(option[4:]) for option in options if option.startswith("pri=")), None)
                    wanted.append((fields[0], own))
    return wanted


def _on(path: str, priority: int | None, quiet: bool) -> int:
    path = os.path.realpath(path)
    try:
        facts = os.stat(path)
        with open(path, "rb") as file:
            file.seek(PAGE - 10)
            signature = file.read(10)
    except OSError as error:
        return _say(f"swapon: cannot open {path}: {error.strerror}", OTHER_ERROR)
    if signature != b"SWAPSPACE2":
        return _say(f"swapon: {path}: read swap header failed", BAD_SIGNATURE)
    if facts.st_blocks * 512 < facts.st_size:
        return _say(f"swapon: {path}: skipping - it appears to have holes.", OTHER_ERROR)
    if facts.st_mode & 0o077 and not quiet:
        sys.stderr.write(f"swapon: {path}: insecure permissions {facts.st_mode & 0o7777:04o}, 0600 suggested.\n")
    if facts.st_uid and not quiet:
        sys.stderr.write(f"swapon: {path}: insecure file owner {facts.st_uid}, 0 (root) suggested.\n")
    with state.Change() as hardware:
        swaps = hardware["swaps"]
        if any(swap["path"] == path for swap in swaps):
            return _say(f"swapon: {path}: swapon failed: Device or resource busy", FAILED)
        lowest = min([swap["priority"] for swap in swaps if swap["priority"] < 0], default=-1)
        size = (facts.st_size // PAGE - 1) * (PAGE // 1024)
        swaps.append({"path": path, "size_kib": size, "priority": lowest - 1 if priority is None else priority})
    return 0


def _swapoff(arguments: list[str]) -> int:
    if os.geteuid():
        sys.stderr.write("swapoff: Not superuser.\n")
        return USAGE
    paths = [os.path.realpath(word) for word in arguments if not word.startswith("-")]
    with state.Change() as hardware:
        active = [swap["path"] for swap in hardware["swaps"]]
        if {"-a", "--all"} & set(arguments):
            paths += active
        hardware["swaps"] = [swap for swap in hardware["swaps"] if swap["path"] not in paths]
    missing = [path for path in paths if path not in active]
    for path in missing:
        reason = "Invalid argument" if os.path.exists(path) else "No such file or directory"
        sys.stderr.write(f"swapoff: {path}: swapoff failed: {reason}\n")
    return OTHER_ERROR if missing else 0


def _say(text: str, status: int) -> int:
    sys.stderr.write(f"{text}\n")
    return status
