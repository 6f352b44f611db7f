"""How a systemd unit is judged: its text with what records a start, what systemd has of it, what its process has."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.provision_host import HostError, read_text, run, sha256_text

UNIT_DIRECTORY = "/etc/systemd/system"
RECORDS = "/run/provision"
PROPERTIES = ("LoadState", "ActiveState", "SubState", "UnitFileState", "NeedDaemonReload", "InvocationID")
# The record's line is a shell command inside a unit file: a name of these characters needs no quoting in either.
PLAIN = re.compile(r"[A-Za-z0-9_./@:+-]+")
# How systemd-analyze speaks of a program, and of a unit, that does not exist.
NOT_THERE_YET = re.compile(r"is not executable: No such file|: Unit \S+ not found\.")
UP = ("active", "activating", "reloading")


def observe(name: str) -> dict[str, str]:
    """The properties of a unit as systemd has it loaded."""
    shown = run(["systemctl", "show", name, *(f"--property={key}" for key in PROPERTIES)], check=False)
    if shown.rc != 0:
        raise HostError(f"systemd does not answer on this host ({shown.err.strip()}). Units need systemd as PID 1.")
    return dict(line.split("=", 1) for line in shown.out.splitlines() if "=" in line)


def is_unread(name: str) -> bool:
    """Whether systemd has not yet read what the unit's files say now, among them that there is none any more."""
    seen, is_there = observe(name), os.path.exists(f"{UNIT_DIRECTORY}/{name}")
    return seen["NeedDaemonReload"] == "yes" or (seen["LoadState"] == "not-found" and is_there)


def full_text(unit: dict[str, Any]) -> str:
    """The unit's text with the two lines that tell, later, what the running process was started with."""
    content = unit["content"].rstrip("\n") + "\n"
    if "[Service]\n" not in content:
        return content
    record = f"{RECORDS}/{unit['name']}.consumed"
    # `+`: as root whatever User= says. `$$`: the shell's variable, not systemd's. Absent files are recorded by absence.
    recorder = (
        f"ExecStartPre=+/bin/sh -c 'umask 077; mkdir -p -m 755 {RECORDS} && "
        f'{{ echo "$$INVOCATION_ID $$PROVISION_UNIT_SHA"; sha256sum /dev/null {" ".join(sorted(unit["consumes"]))}; }} '
        f"> {record} 2>/dev/null; exit 0'\n"
    )
    head, tail = content.split("[Service]\n", 1)
    sha = sha256_text(head + recorder + tail)
    return f"{head}[Service]\nEnvironment=PROVISION_UNIT_SHA={sha}\n{recorder}{tail}"


def unit_sha(text: str) -> str:
    """The hash that a unit's text carries, empty for one that carries none."""
    found = re.search(r"^Environment=PROVISION_UNIT_SHA=(\w+)$", text, re.MULTILINE)
    return found.group(1) if found else ""


def stale(unit: dict[str, Any], text: str, seen: dict[str, str]) -> list[str]:
    """Why the running process is not the wanted one: empty when it was started with all that is wanted."""
    if unit["content"] is None or not unit_sha(text):
        return []
    lines = (read_text(f"{RECORDS}/{unit['name']}.consumed") or "").splitlines() or [""]
    if lines[0].split() != [seen["InvocationID"], unit_sha(text)]:
        return ["it runs another text of the unit"]
    recorded = {path: sha for sha, path in (line.split(maxsplit=1) for line in lines[1:])}
    return [f"{path} changed since it started" for path, sha in unit["consumes"].items() if recorded.get(path) != sha]


def wanted_links(unit: dict[str, Any]) -> list[str] | None:
    """The links that enabling makes, for a unit whose text is ours; None for a packaged one."""
    if unit["content"] is None:
        return None
    install = re.findall(r"^(Wanted|Required)By=(.*)$", unit["content"], re.MULTILINE)
    kinds = {"Wanted": "wants", "Required": "requires"}
    return [
        f"{UNIT_DIRECTORY}/{target}.{kinds[kind]}/{unit['name']}"
        for kind, targets in install
        for target in targets.split()
    ]


def is_enabled(unit: dict[str, Any], seen: dict[str, str]) -> bool:
    """Whether the unit starts at boot; a unit that cannot be enabled counts as what is wanted."""
    links = wanted_links(unit)
    if links is not None:
        return all(os.path.islink(link) for link in links) if links else bool(unit["enabled"])
    if seen["UnitFileState"] in ("static", "indirect", "generated", "alias"):
        return bool(unit["enabled"])
    return seen["UnitFileState"] == "enabled"


def verify(units: list[dict[str, Any]], check_mode: bool) -> None:
    """Have systemd read the texts under their own names, together, before any of them is put in place."""
    texts = {u["name"]: full_text(u) for u in units if u["verify"] and u["content"] and u["state"] != "absent"}
    if not texts:
        return
    with tempfile.TemporaryDirectory(prefix="provision-verify-") as folder:
        for name, text in texts.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        done = run(["systemd-analyze", "verify", "--man=no", *(f"{folder}/{name}" for name in texts)], check=False)
    # It also speaks of other units of the host, and ends with 0 after warnings: what it says of ours decides.
    prefixes = tuple(f"{folder}/{name}" for name in texts) + tuple(f"{name}:" for name in texts)
    complaints = [line.replace(f"{folder}/", "") for line in done.err.splitlines() if line.startswith(prefixes)]
    if check_mode:  # what an earlier stage would bring is not there yet
        complaints = [line for line in complaints if not NOT_THERE_YET.search(line)]
    if complaints:
        raise HostError("systemd-analyze verify refuses the unit; nothing was changed. " + " ".join(complaints))


def act_or_explain(verb: str, name: str) -> None:
    """Start or restart a unit; when it fails, say why in the unit's own last words."""
    run(["systemctl", "reset-failed", name], check=False)
    done = run(["systemctl", verb, name], check=False)
    if done.rc != 0:
        journal = run(["journalctl", "--unit", name, "--lines", "15", "--no-pager", "--output", "cat"], check=False)
        raise HostError(
            f"{name} did not {verb}. Its journal ends with:\n{journal.out.strip()}\n"
            f"See more on the host with: journalctl -u {name}"
        )


def start(name: str, enabling: list[str]) -> None:
    """Have a unit start at boot, if it does not, and now."""
    if enabling:
        run(enabling)
    act_or_explain("start", name)
