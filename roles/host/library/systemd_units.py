#!/usr/bin/python
"""Ansible module: systemd units that run what their files and inputs say, and are restarted only when they do not."""

from __future__ import annotations

import contextlib
import glob
import os
from functools import partial
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import (
    Change,
    HostError,
    absent_change,
    converge,
    file_change,
    remove_file,
    run,
)
from ansible.module_utils.provision_units import (
    PLAIN,
    UNIT_DIRECTORY,
    UP,
    Systemd,
    act_or_explain,
    drop_ins,
    full_text,
    is_enabled,
    is_pausing,
    is_unread,
    stale,
    start,
    verify,
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
  - Of a unit that it writes, drop-ins (C(UNIT.d/*.conf) below C(/etc) and C(/run)) are removed, and a process that was
    started with one is restarted. What a unit shall be stands in its text.
options:
  units:
    description:
      - The units, in the order in which they start. Before that, those that shall be absent stop, in the reverse order.
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
        description:
          - V(started) is running with what is wanted, V(absent) stopped, disabled and without a file. V(installed)
            leaves alone whether it runs, as is right for a unit that another one starts.
        type: str
        choices: [started, stopped, installed, absent]
        default: started
      verify:
        description: Whether C(systemd-analyze verify) must pass the text before it is put in place.
        type: bool
        default: true
      by_package:
        description:
          - Whether the package that brings the unit also enables and starts it, as Debian's do unless something forbids
            it. Where the unit is not there yet, check mode then foretells nothing but that it will be disabled, where
            that is wanted.
        type: bool
        default: false
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
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each unit file and each unit's state that differs.
  returned: always
  type: list
  elements: dict
"""


def plan_files(units: list[dict[str, Any]], systemd: Systemd, check_mode: bool) -> Iterator[Change]:
    """Put the texts in place, then have systemd read what it has not read yet."""
    unread = {unit["name"] for unit in units if is_unread(unit, systemd[unit["name"]])}
    is_written = False
    for unit in in_order(units):
        changes = list(plan_absent(unit, systemd) if unit["state"] == "absent" else plan_text(unit))
        yield from changes
        is_written = is_written or bool(changes)
        if not changes and unit["name"] in unread:
            name = unit["name"]
            words = ("another text of the unit\n", "the text of its files\n")
            yield Change(f"Had systemd read {name} again.", reload, name, *words, "reload")
    if is_written and not check_mode:
        reload()
        systemd.forget()


def in_order(units: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that go, the last first: a watcher stops before what it would start anew. Then the rest."""
    going = [unit for unit in units if unit["state"] == "absent"]
    return going[::-1] + [unit for unit in units if unit not in going]


def reload() -> None:
    """Have systemd read all units again."""
    run(["systemctl", "daemon-reload"])


def plan_text(unit: dict[str, Any]) -> Iterator[Change]:
    """A unit's text, and nothing beside it that would override parts of it."""
    if unit["content"] is not None:
        yield from file_change(f"{UNIT_DIRECTORY}/{unit['name']}", full_text(unit), effect="reload")
        for path in drop_ins(unit["name"]):
            for change in absent_change(path):
                change.act, change.effect = partial(remove_drop_in, path), "reload"
                yield change


def remove_drop_in(path: str) -> None:
    """Remove a file that overrides a unit, and its directory if that holds no other."""
    remove_file(path)
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(path))


def plan_absent(unit: dict[str, Any], systemd: Systemd) -> Iterator[Change]:
    """Stop a unit, and leave neither its file nor links to it."""
    name, path = unit["name"], f"{UNIT_DIRECTORY}/{unit['name']}"
    yield from plan_stop(unit, systemd[name])
    links = [link for kind in ("wants", "requires") for link in glob.glob(f"{UNIT_DIRECTORY}/*.{kind}/{name}")]
    if links:
        yield Change(f"Disabled {name}.", lambda: [remove_file(link) for link in links], name, "enabled\n", "")
    yield from absent_change(path)


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
            "restart",
        )


def plan_state(unit: dict[str, Any], seen: dict[str, str], check_mode: bool) -> Iterator[Change]:
    """Enable or disable, start, stop or restart one unit, as what systemd says of it now asks for."""
    name = unit["name"]
    if seen["LoadState"] == "masked" and not (
        check_mode and unit["content"] is not None
    ):  # whose text will be put back
        raise HostError(f"{name} is masked, so it cannot run. If that is not meant: systemctl unmask {name}")
    if seen["LoadState"] == "not-found" and unit["by_package"] and check_mode:
        if not unit["enabled"]:  # Debian's packages enable what they bring
            yield Change(f"Disabled {name}.", lambda: None, name, "enabled\n", "disabled\n")
        return
    if seen["LoadState"] == "not-found" and not check_mode:
        raise HostError(f"There is no unit {name} on this host: the package that brings it is not installed.")
    # reenable, since a changed [Install] leaves links of the old one; it passes over what a package has for SysV
    enable = "enable" if unit["content"] is None else "reenable"
    enabling = ["systemctl", enable if unit["enabled"] else "disable", name]
    is_up = seen["ActiveState"] in UP and not is_pausing(seen)
    differs = is_enabled(unit, seen) != unit["enabled"]
    if differs and (is_up or unit["state"] != "started"):
        verb, words = ("Enabled", "disabled\n enabled\n") if unit["enabled"] else ("Disabled", "enabled\n disabled\n")
        yield Change(f"{verb} {name}.", lambda: run(enabling), name, *words.split(" "))
    if unit["state"] == "stopped":
        yield from plan_stop(unit, seen)
    elif unit["state"] == "started" and not is_up:
        # One sentence for both: whether a package enables its unit by itself cannot be foretold.
        before = f"state: {seen['ActiveState']} ({seen['SubState']})\n"
        yield Change(
            f"Started {name}.", lambda: start(name, enabling if differs else [], seen), name, before, "state: active\n"
        )
    elif unit["state"] == "started":
        why = stale(unit, full_text(unit) if unit["content"] is not None else "", seen)
        if why:
            yield Change(
                f"Restarted {name}; {', '.join(why)}.",
                lambda: act_or_explain("restart", name),
                name,
                "".join(f"{reason}\n" for reason in why),
                "started with what is wanted\n",
                "restart",
            )


def plan(units: list[dict[str, Any]], check_mode: bool) -> Iterator[Change]:
    """All that differs: the files of all units first, so that a unit starts among what it depends on."""
    for unit in units:
        for name in (unit["name"], *unit["consumes"]):
            if not PLAIN.fullmatch(name):
                raise HostError(f"{name!r} cannot stand in a unit: use letters, digits and _ . / @ : + - only.")
    systemd = Systemd([unit["name"] for unit in units])
    verify(units, check_mode)
    for change in plan_units(units, systemd, check_mode):
        yield change
        if not check_mode:
            systemd.forget()


def plan_units(units: list[dict[str, Any]], systemd: Systemd, check_mode: bool) -> Iterator[Change]:
    """Files, then states."""
    yield from plan_files(units, systemd, check_mode)
    for unit in units:
        if unit["state"] != "absent":
            yield from plan_state(unit, systemd[unit["name"]], check_mode)


def main() -> None:
    options = {
        "name": {"type": "str", "required": True},
        "content": {"type": "str"},
        "consumes": {"type": "dict", "default": {}},
        "enabled": {"type": "bool", "default": True},
        "state": {"type": "str", "choices": ["started", "stopped", "installed", "absent"], "default": "started"},
        "verify": {"type": "bool", "default": True},
        "by_package": {"type": "bool", "default": False},
    }
    spec = {"units": {"type": "list", "elements": "dict", "required": True, "options": options}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    converge(module, lambda: plan(module.params["units"], module.check_mode))


if __name__ == "__main__":
    main()
