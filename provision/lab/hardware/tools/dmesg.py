"""`dmesg`: what this host's own kernel would have said of its hardware. The machine's kernel log is not the host's."""

from __future__ import annotations

import sys
import time

import state


def main(_version: str, arguments: list[str]) -> int:
    hardware = state.read()
    readable = any(
        word in ("-T", "--ctime") or (word[:1] == "-" and word[1:2] != "-" and "T" in word) for word in arguments
    )
    for when, text in hardware["kernel_log"]:
        stamp = time.ctime(when) if readable else f"{when - hardware['booted']:12.6f}"
        sys.stdout.write(f"[{stamp}] {text}\n")
    return 0
