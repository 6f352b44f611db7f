#!/usr/bin/python
"""Ansible module: systemd units that run what their files and inputs say, and are restarted only when they do not."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import (
    Change,
    HostError,
    absent_change,
    converge,
    file_change,
    read_text,
    run,
    sha256_text,
)

DOCUMENTATION = r"""
module: systemd_units
short_description: Converges systemd units and restarts those that run with other inputs than they should
description:
  - Writes unit files after C(systemd-analyze verify) has passed a copy, enables and starts them.
  - Adds two lines to the C([Service]) section of each unit that it writes. C(PROVISION_UNIT_SHA) is the hash of the
    unit's text, and an C(ExecStartPre) records, at each start, which unit text and which content of the files in
    O(units[].consumes) the process was started with, in C(/run/provision/UNIT.consumed).
  - A unit is restarted when, and only when, what that record says differs from what is wanted. So a run that was
    interrupted after it wrote a file, and before it restarted the unit, is made good by the next.
options:
  units:
    description: The units, in the order in which they start.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The unit's name with its suffix.
        type: str
        required: true
      content:
        description: The unit's text. Without it the unit is one that a package brings, and only its state is converged.
        type: str
      consumes:
        description: Files that the process reads at its start, each with the SHA-256 of the content wanted.
        type: dict
        default: {}
      enabled:
        description: Whether the unit starts at boot. A unit without an C([Install]) section is left as it is.
        type: bool
        default: true
      state:
        description: V(started) is running with what is wanted; V(absent) is stopped, disabled and without a file.
        type: str
        choices: [started, stopped, absent]
        default: started
      verify:
        description: Whether C(systemd-analyze verify) must pass the text before it is put in place.
        type: bool
        default: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Run the head of the Ray cluster
  systemd_units:
    units:
      - name: ray-head.service
        content: "{{ lookup('ansible.builtin.template', 'ray-head.service.j2') }}"
        consumes:
          /etc/provision/ray.env: "{{ __ray_environment | hash('sha256') }}"

- name: Keep the persistence daemon of the driver's package running
  systemd_units:
    units:
      - name: nvidia-persistenced.service
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Restarted ray-head.service; /etc/provision/ray.env changed since it started.]
diff:
  description: One entry for each unit file and each unit's state that differs.
  returned: always
  type: list
  elements: dict
"""

UNIT_DIRECTORY = "/etc/systemd/system"
RECORDS = "/run/provision"
PROPERTIES = ("LoadState", "ActiveState", "SubState", "UnitFileState", "NeedDaemonReload", "InvocationID")
# The record's line is a shell command inside a unit file: a name of these characters needs no quoting in either.
PLAIN = re.compile(r"[A-Za-z0-9_./@:+-]+")
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
    if check_mode:  # a program that an earlier stage installs is not there yet
        complaints = [line for line in complaints if "is not executable: No such file" not in line]
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


def plan_files(units: list[dict[str, Any]]) -> Iterator[Change]:
    """Put the texts in place, then have systemd read what it has not read yet."""
    for unit in units:
        path = f"{UNIT_DIRECTORY}/{unit['name']}"
        if unit["state"] == "absent":
            if read_text(path) is not None:
                yield from plan_stop(unit, observe(unit["name"]))
                yield Change(f"Disabled {unit['name']}.", lambda name=unit["name"]: run(["systemctl", "disable", name]))
                yield from absent_change(path)
        elif unit["content"] is not None:
            yield from file_change(path, full_text(unit))


def plan_stop(unit: dict[str, Any], seen: dict[str, str]) -> Iterator[Change]:
    """Stop a unit that runs."""
    if seen["ActiveState"] in UP:
        name = unit["name"]
        yield Change(
            f"Stopped {name}.",
            lambda: run(["systemctl", "stop", name]),
            name,
            f"state: {seen['ActiveState']}\n",
            "state: inactive\n",
        )


def plan_state(unit: dict[str, Any], check_mode: bool) -> Iterator[Change]:
    """Enable or disable, start, stop or restart one unit, as what systemd says of it now asks for."""
    name, seen = unit["name"], observe(unit["name"])
    if seen["LoadState"] == "masked":
        raise HostError(f"{name} is masked, so it cannot run. If that is not meant: systemctl unmask {name}")
    if seen["LoadState"] == "not-found" and not check_mode:
        raise HostError(f"There is no unit {name} on this host: the package that brings it is not installed.")
    if is_enabled(unit, seen) != unit["enabled"]:
        verb = "enable" if unit["enabled"] else "disable"
        words = [f"enabled: {str(not unit['enabled']).lower()}\n", f"enabled: {str(unit['enabled']).lower()}\n"]
        # reenable, since a changed [Install] section leaves links of the old one
        command = ["systemctl", "reenable" if unit["enabled"] else "disable", name]
        yield Change(f"{verb.capitalize()}d {name}.", lambda: run(command), name, *words)
    if unit["state"] == "stopped":
        yield from plan_stop(unit, seen)
    elif seen["ActiveState"] not in UP or seen["SubState"] == "auto-restart":
        before = f"state: {seen['ActiveState']} ({seen['SubState']})\n"
        yield Change(f"Started {name}.", lambda: act_or_explain("start", name), name, before, "state: active\n")
    else:
        why = stale(unit, full_text(unit) if unit["content"] is not None else "", seen)
        if why:
            yield Change(
                f"Restarted {name}; {', '.join(why)}.",
                lambda: act_or_explain("restart", name),
                name,
                "".join(f"{reason}\n" for reason in why),
                "started with what is wanted\n",
            )


def plan(units: list[dict[str, Any]], check_mode: bool) -> Iterator[Change]:
    """All that differs: the files of all units first, so that a unit starts among what it depends on."""
    for unit in units:
        for name in (unit["name"], *unit["consumes"]):
            if not PLAIN.fullmatch(name):
                raise HostError(f"{name!r} cannot stand in a unit: use letters, digits and _ . / @ : + - only.")
    verify(units, check_mode)
    yield from plan_files(units)
    if not check_mode and any(is_unread(unit["name"]) for unit in units):
        run(["systemctl", "daemon-reload"])
    for unit in units:
        if unit["state"] != "absent":
            yield from plan_state(unit, check_mode)


def main() -> None:
    options = {
        "name": {"type": "str", "required": True},
        "content": {"type": "str"},
        "consumes": {"type": "dict", "default": {}},
        "enabled": {"type": "bool", "default": True},
        "state": {"type": "str", "choices": ["started", "stopped", "absent"], "default": "started"},
        "verify": {"type": "bool", "default": True},
    }
    spec = {"units": {"type": "list", "elements": "dict", "required": True, "options": options}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    converge(module, lambda: plan(module.params["units"], module.check_mode))


if __name__ == "__main__":
    main()
