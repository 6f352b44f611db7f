#!/usr/bin/python3
"""Keeps this host's part of an engine with the head's, where vLLM itself starts the workers of several hosts.

Processes of vLLM find each other once, when they start. If one of them begins anew, all must; vLLM sees to none of
that: a rank whose head is gone waits for ever, and a head whose rank is gone says 200. So each start on the head is an
epoch (provision-health.service there tells it), and a host belongs to one epoch only.

`join`: wait for an epoch that this host has not been part of yet, then become vLLM. `watch`, for ever: end with 70 when
the head has gone on to another, whereupon systemd starts vLLM here anew, which joins it.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import argparse
import http.client
import os
import time
import uuid
from pathlib import Path

POLL_S = 0.5  # the head sends no requests to an engine whose host says nothing for a few seconds
ENDS = 70  # the exit status by which the unit knows


class Head:
    """What the head says. It knows this host by its address."""

    def __init__(self, place: str, own: str) -> None:
        self.host, _, port = place.rpartition(":")
        self.port, self.own = int(port), own

    def epoch(self, start: str, mine: str = "") -> str | None:
        """Of the engine that this host's start belongs to; empty for none, None if the head does not answer.

        Whoever is part of an epoch says of which (`mine`): the head would else take it for one that joins the next.
        """
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5, source_address=(self.own, 0))
        try:
            connection.request("GET", f"/join/{start}/{mine}".rstrip("/"))
            answer = connection.getresponse()
            text = answer.read().decode().strip()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return text if answer.status == 200 else ""


def join(head: Head, run: Path, command: list[str]) -> None:
    """Wait for an epoch, write down that this start belongs to it, and run the command in the place of this program."""
    start = uuid.uuid4().hex
    print(f"Waiting for vLLM on {head.host} to begin.", flush=True)
    while not (epoch := head.epoch(start)):
        time.sleep(POLL_S)
    (run / "start").write_text(f"{start}\n")
    (run / "epoch").write_text(f"{epoch}\n")
    os.execv(command[0], command)  # noqa: S606 - as the unit says


def joined(run: Path) -> tuple[str, str]:
    """Which start of this host is part of which epoch; empty where vLLM does not run here, or waits to join."""
    try:
        return (run / "start").read_text().strip(), (run / "epoch").read_text().strip()
    except OSError:
        return "", ""


def watch(head: Head, run: Path) -> None:
    """Tell the head that this host is there, until it has gone on without it."""
    while True:
        start, mine = joined(run)
        if mine:
            now = head.epoch(start, mine)
            if now not in (None, mine) and joined(run) == (start, mine):  # it may have begun anew meanwhile
                print(f"vLLM on {head.host} began anew, or is about to. So does this host's part.", flush=True)
                raise SystemExit(ENDS)
        time.sleep(POLL_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("do", choices=["join", "watch"])
    parser.add_argument("--head", required=True, metavar="ADDRESS:PORT", help="of its provision-health.service")
    parser.add_argument("--address", required=True, help="this host's own, as the head knows it")
    parser.add_argument("--run", default="/run/vllm", help="where it is written down; gone when vLLM ends")
    parser.add_argument("command", nargs="*", help="what to run once it has joined")
    asked = parser.parse_args()
    head, run = Head(asked.head, asked.address), Path(asked.run)
    if asked.do == "watch":
        watch(head, run)
    join(head, run, asked.command)


if __name__ == "__main__":
    main()
