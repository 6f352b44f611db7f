"""How a systemd unit is judged: its text with what records a start, what systemd has of it, what its process has."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Any, Sequence

from ansible.module_utils.provision_files import work_folder
from ansible.module_utils.provision_host import HostError, read_text, run, sha256_text

UNIT_DIRECTORY = "/etc/systemd/system"
RECORDS = "/run/provision"
DROP_IN_ROOTS = tuple(f"{top}/systemd/system{kind}" for top in ("/etc", "/run") for kind in ("", ".control"))
PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "FragmentPath",
    "NeedDaemonReload",
    "InvocationID",
    "NRestarts",
)
# The record's line is a shell command inside a unit file: a name of these characters needs no quoting in either.
PLAIN = re.compile(r"[A-Za-z0-9_./@:+-]+")
# How systemd-analyze speaks of a program, and of a unit, that does not exist.
NOT_THERE_YET = re.compile(r"is not executable: No such file|: Unit \S+ not found\.")
UP = ("active", "activating", "reloading")
# Units that a verifier asks for in several steps: who asks for some of them asks for all, in words that it remembers.
TOGETHER: list[str] = []


def observe(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The properties of units as systemd has them loaded, by name; one call for all, since each costs a fork."""
    asked = TOGETHER if set(names) <= set(TOGETHER) else names
    shown = run(["systemctl", "show", *asked, *(f"--property={key}" for key in PROPERTIES)], check=False)
    if shown.rc != 0:
        raise HostError(f"systemd does not answer on this host ({shown.err.strip()}). Units need systemd as PID 1.")
    blocks = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in shown.out.strip().split("\n\n")
    ]
    return {name: block for name, block in zip(asked, blocks) if name in names}  # noqa: B905  Python 3.9


class Systemd:
    """What systemd has of some units: asked once, and again after something was done."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._seen = names, {}

    def __getitem__(self, name: str) -> dict[str, str]:
        if not self._seen:
            self._seen = observe(self._names)
        return self._seen[name]

    def forget(self) -> None:
        """Something was done: ask again."""
        self._seen = {}


def is_unread(unit: dict[str, Any], seen: dict[str, str]) -> bool:
    """Whether systemd has not yet read what the unit's files say now, among them that there is none any more."""
    path = f"{UNIT_DIRECTORY}/{unit['name']}"
    is_another = unit["content"] is not None and os.path.exists(path) and seen["FragmentPath"] != path
    return seen["NeedDaemonReload"] == "yes" or is_another


def drop_ins(name: str) -> list[str]:
    """Files that somebody put beside a unit to override parts of it; systemd looks for them in four places."""
    found = (glob.glob(f"{root}/{name}.d/*.conf") for root in DROP_IN_ROOTS)
    return sorted(path for paths in found for path in paths)


def full_text(unit: dict[str, Any]) -> str:
    """The unit's text with the two lines that tell, later, what the running process was started with."""
    content = unit["content"].rstrip("\n") + "\n"
    if "[Service]\n" not in content:
        return content
    name = unit["name"]
    overrides = (f"{root}/{name}.d/*.conf" for root in DROP_IN_ROOTS)
    paths = " ".join(["/dev/null", f"{UNIT_DIRECTORY}/{name}", *sorted(unit["consumes"]), *overrides])
    # `+`: as root whatever User= says. `$$`: the shell's variable, not systemd's. Absent files are recorded by absence.
    recorder = (
        f"ExecStartPre=+/bin/sh -c 'umask 077; mkdir -p -m 755 {RECORDS} && "
        f'{{ echo "$$INVOCATION_ID $$PROVISION_UNIT_SHA"; sha256sum {paths}; }} '
        f"> {RECORDS}/{name}.consumed 2>/dev/null; exit 0'\n"
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
    own = f"{UNIT_DIRECTORY}/{unit['name']}"
    lines = (read_text(f"{RECORDS}/{unit['name']}.consumed") or "").splitlines() or [""]
    recorded = {path: sha for sha, path in (line.split(maxsplit=1) for line in lines[1:])}
    # The hash of the text that systemd had loaded, and of the file at that time: either may have been edited alone.
    if lines[0].split() != [seen["InvocationID"], unit_sha(text)] or recorded.get(own) != sha256_text(text):
        return ["it runs another text of the unit"]
    others = sorted(recorded.keys() - {"/dev/null", own, *unit["consumes"]})
    changed = [path for path, sha in unit["consumes"].items() if recorded.get(path) != sha]
    return [f"it was started with {path}" for path in others] + [f"{path} changed since it started" for path in changed]


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


def pointed_at(link: str) -> str:
    """What a link names, one step on: what is masked is a link itself."""
    return os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))


def is_enabled(unit: dict[str, Any], seen: dict[str, str]) -> bool:
    """Whether the unit starts at boot; a unit that cannot be enabled counts as what is wanted.

    A link to the text that a package brings is none of ours, though systemd goes by its name.
    """
    links = wanted_links(unit)
    if links is not None:
        own = f"{UNIT_DIRECTORY}/{unit['name']}"
        ours = [os.path.islink(link) and pointed_at(link) == own for link in links]
        return (all(ours) if unit["enabled"] else any(map(os.path.islink, links))) if links else bool(unit["enabled"])
    if seen["UnitFileState"] in ("static", "indirect", "generated", "alias"):
        return bool(unit["enabled"])
    return seen["UnitFileState"] == "enabled"


def verify(units: list[dict[str, Any]], check_mode: bool) -> None:
    """Have systemd read the texts under their own names, together, before any of them is put in place.

    Texts that are all in place already have been read.
    """
    texts = {u["name"]: full_text(u) for u in units if u["verify"] and u["content"] and u["state"] != "absent"}
    if all(read_text(f"{UNIT_DIRECTORY}/{name}") == text for name, text in texts.items()):
        return
    with work_folder(RECORDS, "verify-units") as folder:
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


def is_pausing(seen: dict[str, str]) -> bool:
    """Whether a unit ended and waits for its next start: systemd waits, or what the unit itself runs before it."""
    again = seen.get("NRestarts", "0") != "0"
    return seen["SubState"].startswith("auto-restart") or (seen["SubState"] == "start-pre" and again)


def start(name: str, enabling: list[str], seen: dict[str, str]) -> None:
    """Have a unit start at boot, if it does not, and now: only a restart cuts a pause short."""
    if enabling:
        run(enabling)
    act_or_explain("restart" if is_pausing(seen) else "start", name)
