"""The commands of the units, of the module model_weights, and of `provision weights`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from provision_weights.errors import LaterError, RefusedError, WeightsError
from provision_weights.fetch import Fetcher, explain
from provision_weights.files import BLOCK, forget, seal, which_are_right
from provision_weights.keep import collect, status, switch
from provision_weights.sources import open_source, wanted
from provision_weights.spec import SPEC, Spec, load

GIVEN_UP = 3  # the unit is not started again


def main() -> int:
    parser = argparse.ArgumentParser(prog="provision_weights", description=__doc__)
    parser.add_argument("--spec", default=SPEC, metavar="FILE", help="[default: %(default)s]")
    parser.add_argument("--asked", default="", metavar="JSON", help="parts of the spec that hold instead")
    parser.add_argument("command", choices=COMMANDS)
    asked = parser.parse_args()
    try:
        spec = load(asked.spec, json.loads(asked.asked or "{}"))
    except (OSError, ValueError) as error:
        print(f"{asked.spec} does not say what to fetch ({error}): run  provision bootstrap  again.", file=sys.stderr)
        return GIVEN_UP
    try:
        return COMMANDS[asked.command](spec)
    except (WeightsError, LaterError, OSError) as error:
        print(explain(error, spec), file=sys.stderr)
        return 1 if isinstance(error, LaterError) else GIVEN_UP


def as_json(act: Callable[[Spec], dict[str, Any]]) -> Callable[[Spec], int]:
    """A command that prints what it found."""

    def command(spec: Spec) -> int:
        print(json.dumps(act(spec)))
        return 0

    return command


def fetch(spec: Spec) -> int:
    """Fetch what is missing into the partial directory."""
    Fetcher(spec).run()
    return 0


def list_files(spec: Spec) -> int:
    """Ask the source which files there are, as JSON."""
    print(json.dumps(wanted(open_source(spec).files(), spec.exclude)))
    return 0


def warm(spec: Spec) -> int:
    """Read the files into memory, in the order of their names, as far as memory is free."""
    paths = sorted(path for path in spec.place.rglob("*") if path.is_file())
    room = int(available_memory() * 0.8)
    with ThreadPoolExecutor(8) as pool:  # a disk of flash is only fast when asked for much at a time
        for path in paths:
            room -= path.stat().st_size
            if room < 0:
                print(f"Memory is not enough from {path.name} on: the disk is read when that is loaded.")
                break
            pool.submit(read_through, path)
    return 0


def available_memory() -> int:
    """Bytes that the kernel can give without swapping."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def read_through(path: Path) -> None:
    """Read a file, so that the kernel keeps it."""
    block = memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while stream.readinto(block):
            pass


def verify(spec: Spec) -> int:
    """Read all that lies in place, and say as JSON what is not right; what is, is sealed, and what is not no longer."""
    try:
        files = json.loads(spec.manifest.read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        raise RefusedError(f"{spec.repo} at {spec.commit[:12]} was not fetched to this host.") from None
    for name in files:
        forget(spec.place / name)
    begin = time.monotonic()
    right = which_are_right(spec.place, files, files)
    for name in right:
        seal(spec.place / name)
    for name in set(files) - right:
        with contextlib.suppress(FileNotFoundError):
            os.utime(spec.place / name)  # so that the next bootstrap fetches it again
    told = {
        "commit": spec.commit,
        "files": len(files),
        "bytes": sum(entry["size"] for entry in files.values()),
        "wrong": sorted(set(files) - right),
        "seconds": round(time.monotonic() - begin, 3),
    }
    print(json.dumps(told))
    return 1 if told["wrong"] else 0


COMMANDS = {
    "fetch": fetch,
    "list": list_files,
    "verify": verify,
    "warm": warm,
    "status": as_json(status),
    "switch": as_json(switch),
    "garbage": as_json(partial(collect, remove=False)),
    "collect": as_json(partial(collect, remove=True)),
}


if __name__ == "__main__":
    sys.exit(main())
