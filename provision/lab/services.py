"""What stands in for the world on a fleet's gateway address: a package repository, and a hub of models.

`python -m provision.lab.services ADDRESS PORT DIRECTORY` serves the files below DIRECTORY, read only.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from provision.errors import LabError
from provision.lab import cgroup, hardware


@dataclass(frozen=True)
class Service:
    """One server of the fleet: the module that is run, and the directory that it serves."""

    name: str
    module: str
    directory: str
    port: int


def assign(address: str, ports: dict[str, int]) -> tuple[Service, Service]:
    """The fleet's two services, each at the port that it had, or at a free one."""
    apt = ports.get("apt") or _free_port(address, 8080)
    hub = ports.get("hub") or _free_port(address, 8081)
    return (
        Service("apt", "provision.lab.services", "world", apt),
        Service("hub", "provision.lab.hub", "hub", hub),
    )


def _free_port(address: str, preferred: int) -> int:
    """`preferred`, unless something on this machine listens there on every address."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise LabError(f"No port is free on {address}: `ss -ltnp` shows what listens.")


def prepare(directory: Path) -> None:
    """Make what is served: the signed repository of packages; the hub makes its own model."""
    (directory / "hub").mkdir(exist_ok=True)
    target = directory / "world" / "apt"
    if not target.exists():
        new = target.with_name(f".{target.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        hardware.repository.build(new)
        new.rename(target)


def ensure(fleet: str, directory: Path, address: str, services: Sequence[Service]) -> None:
    """Start those that do not run, and wait until all answer."""
    for service in services:
        group = f"{fleet}/services/{service.name}"
        if cgroup.processes(group):
            continue
        cgroup.make(group)
        argv = [sys.executable, "-m", service.module, address, str(service.port), str(directory / service.directory)]
        with (directory / f"{service.name}.log").open("ab") as log:
            subprocess.Popen(
                cgroup.enter(group, argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
    for service in services:
        _await(directory, address, service)


def _await(directory: Path, address: str, service: Service) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection((address, service.port), timeout=1).close()
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(0.05)
                continue
            log = directory / f"{service.name}.log"
            said = log.read_text(encoding="utf-8", errors="replace")[-1000:].strip()
            raise LabError(
                f"The lab's {service.name} service does not answer on {address}:{service.port}. Its log, {log}:\n{said}"
            ) from error
        return


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files, with the connection kept open between them: apt asks for many small ones."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing: the log is for what goes wrong."""


def main(address: str, port: int, directory: Path) -> None:
    """Serve until killed."""
    handler = functools.partial(_Handler, directory=os.fspath(directory))
    http.server.ThreadingHTTPServer((address, port), handler).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
