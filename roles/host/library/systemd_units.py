#!/usr/bin/python
"""Ansible module: systemd units that run what their files and inputs say, and are restarted only when they do not."""

from __future__ import annotations

from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import Change, HostError, absent_change, converge, file_change, read_text, run
from ansible.module_utils.provision_units import (
    PLAIN,
    UNIT_DIRECTORY,
    UP,
    act_or_explain,
    full_text,
    is_enabled,
    is_unread,
    observe,
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
    # reenable, since a changed [Install] section leaves links of the old one
    enabling = ["systemctl", "reenable" if unit["enabled"] else "disable", name]
    is_up = seen["ActiveState"] in UP and seen["SubState"] != "auto-restart"
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
            f"Started {name}.", lambda: start(name, enabling if differs else []), name, before, "state: active\n"
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
        "state": {"type": "str", "choices": ["started", "stopped", "installed", "absent"], "default": "started"},
        "verify": {"type": "bool", "default": True},
    }
    spec = {"units": {"type": "list", "elements": "dict", "required": True, "options": options}}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    converge(module, lambda: plan(module.params["units"], module.check_mode))


if __name__ == "__main__":
    main()
