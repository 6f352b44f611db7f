#!/usr/bin/python3
"""Asks and tells the gateway of this host, through the sockets that only root can open.

  provision-gateway state                every replica: rotation, requests in flight, what its check last said; as JSON
  provision-gateway drain REPLICA [WHO]  no new requests for it; those in flight go on
  provision-gateway admit REPLICA        requests for it again, as soon as its check passes
  provision-gateway alive                whether it serves; for the address that gateways share
  provision-gateway save                 note what is drained, for the process that comes next

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import csv
import json
import os
import re
import socket
import sys
import time
from pathlib import Path

RUN = os.environ.get("PROVISION_GATEWAY_RUN", "/run/provision-gateway")
STATE = os.environ.get("PROVISION_GATEWAY_STATE", "/var/lib/provision/gateway/servers.state")
CONFIG = os.environ.get("PROVISION_GATEWAY_CONFIG", "/etc/provision/secrets/gateway/haproxy.cfg")
SERVER = re.compile(
    r"^ *server (?P<name>\S+) (?P<address>\S+):(?P<port>\d+) check(?: port (?P<check>\d+))?", re.MULTILINE
)
DRAINED = "drained.json"  # beside it: who drained what
BACKEND = "replicas"
ANSWER_S = 10
RELOAD_S = 3


class GatewayError(Exception):
    """Says what is, what was expected, and the next step."""


def ask(command: str, name: str = "admin.sock") -> str:
    """One command to one of the sockets, and all that it says."""
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(ANSWER_S)
        try:
            channel.connect(f"{RUN}/{name}")
            channel.sendall(f"{command}\n".encode())
            channel.shutdown(socket.SHUT_WR)  # the master keeps a connection that could say more
            said = b"".join(iter(lambda: channel.recv(1 << 16), b""))
        except OSError as error:
            raise GatewayError(
                f"The gateway does not answer ({RUN}/{name}: {error}). See: systemctl status provision-gateway"
            ) from None
    return said.decode(errors="replace")


def workers() -> list[int]:
    """The processes that serve: the one that takes requests first, then those that a reload left to finish theirs."""
    deadline = time.monotonic() + RELOAD_S
    while True:
        try:
            rows = [line.split() for line in ask("show proc", "master.sock").splitlines() if line and line[0] != "#"]
            found = [int(row[0]) for row in rows if row[1] == "worker"]
            if found:
                return found
            raise GatewayError("No process of the gateway serves. See: systemctl status provision-gateway")
        except GatewayError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)  # while it reloads, nobody answers for a moment


def servers(worker: int) -> dict[str, dict[str, str]]:
    """What one process has of the replicas, by name, in HAProxy's own field names."""
    text = ask(f"@!{worker} show stat {BACKEND} 4 -1", "master.sock").lstrip("# ")
    return {row["svname"]: row for row in csv.DictReader(text.splitlines())}


def rotation(row: dict[str, str]) -> str:
    """`in` (takes requests), `draining` (takes no new ones), `down` (its check fails) or `out` (taken out by hand)."""
    status = row["status"]
    if status.startswith("MAINT"):
        return "out"
    if status.startswith("DRAIN"):
        return "draining"
    return "in" if status.startswith(("UP", "no check")) else "down"


def state() -> dict[str, object]:
    """Every replica, with the requests of all processes."""
    first, *older = workers()
    found = servers(first)
    left = [row for worker in older for row in finishing(worker)]
    who = drained()
    return {
        name: {
            "rotation": rotation(row),
            "in_flight": int(row["scur"]) + sum(int(other["scur"]) for other in left if other["svname"] == name),
            "check": " ".join(filter(None, [row["check_status"], row["last_chk"]])),
            "since_s": int(row["lastchg"] or 0),
            "by": "" if rotation(row) == "in" else who.get(name, "" if rotation(row) == "down" else "somebody"),
        }
        for name, row in found.items()
    }


def finishing(worker: int) -> list[dict[str, str]]:
    """What a process has that may end while it is asked."""
    try:
        return list(servers(worker).values())
    except (GatewayError, KeyError):
        return []


def drained() -> dict[str, str]:
    """Who drained which replica, as far as it was noted."""
    try:
        return dict(json.loads(Path(STATE).with_name(DRAINED).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def put(name: str, to: str, who: str = "") -> None:
    """Have every process treat a replica so: one that finishes its requests may yet get more on its connections."""
    first, *older = workers()
    there = servers(first)
    if name not in there:
        raise GatewayError(f"This gateway has no replica {name}. It has {', '.join(there)}.")
    said = ask(f"@!{first} set server {BACKEND}/{name} state {to}", "master.sock").strip()
    if said:
        raise GatewayError(f"The gateway refused: {said}")
    for worker in older:
        try:
            ask(f"@!{worker} set server {BACKEND}/{name} state {to}", "master.sock")
        except GatewayError:  # it has ended meanwhile
            continue
    noted = {key: value for key, value in drained().items() if key != name and key in there}
    write(Path(STATE).with_name(DRAINED), json.dumps({**noted, name: who} if who else noted))
    save()


def save() -> None:
    """Keep the state of the replicas for the next process, whole or not at all."""
    text = ask(f"show servers state {BACKEND}")
    if not re.match(r"1\n# ", text):
        raise GatewayError(f"The gateway did not tell the state of its replicas, but said: {text.strip()[:200]}")
    write(Path(STATE), moved(text, Path(CONFIG).read_text(encoding="utf-8")))


def moved(state: str, config: str) -> str:
    """A state with the places of the configuration: HAProxy would else send to a port that a replica had before."""
    places = {row["name"]: row for row in SERVER.finditer(config)}
    version, titles, *lines = state.splitlines()
    columns = titles.lstrip("# ").split()
    found = [version, titles]
    for line in lines:
        fields = dict(zip(columns, line.split()))  # noqa: B905  Python 3.9
        place = places.get(fields.get("srv_name", ""))
        if place:
            now = {"srv_addr": place["address"], "srv_port": place["port"], "srv_check_port": place["check"] or "0"}
            fields.update({name: value for name, value in now.items() if name in fields})
            found.append(" ".join(fields.values()))
    return "\n".join(found) + "\n"


def write(path: Path, text: str) -> None:
    """Put a whole file in place, for good: a drain must outlive the loss of power."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def main(arguments: list[str]) -> int:
    """Do it; 1 with a sentence if it cannot be done."""
    try:
        if arguments == ["state"]:
            json.dump(state(), sys.stdout)
            print()
        elif arguments == ["save"]:
            save()
        elif arguments == ["alive"]:
            ask("show info")
        elif len(arguments) in (2, 3) and arguments[0] == "drain":
            put(arguments[1], "drain", (arguments[2:] or ["somebody"])[0])
        elif len(arguments) == 2 and arguments[0] == "admit":
            put(arguments[1], "ready")
        else:
            print(__doc__.strip(), file=sys.stderr)
            return 64
    except GatewayError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
