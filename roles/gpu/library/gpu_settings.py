#!/usr/bin/python
"""Ansible module: the settings of all GPUs of a host, read at once and changed only where they differ."""

from __future__ import annotations

import json
import time
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_driver import LibraryMismatchError, is_mig_at_once, query_gpus
from ansible.module_utils.provision_gpu import (
    BY_GPU,
    Setting,
    as_range,
    differing,
    read_gpus,
    refuse_unknown,
    refuse_unlisted,
    value_for,
    virgin_rows,
)
from ansible.module_utils.provision_host import Change, HostError, converge, read_text, run, write_file
from ansible.module_utils.provision_units import observe

DOCUMENTATION = r"""
module: gpu_settings
short_description: Converges clocks, power limit and modes of all GPUs of a host
description:
  - Reads all GPUs with one query, refuses values that the cards do not list, and changes what differs, GPUs with the
    same change together.
  - No driver tells whether a clock is locked. What can be observed is the clock itself. A locked card runs at its lock
    also when idle; a card that is held below it by heat or power is taken for locked. Where no lock is wanted, a lock
    set by hand shows on a card without work, which otherwise drops to its lowest clocks or, with a client that waits,
    runs at its highest; on a busy card it does not.
options:
  locked_clocks:
    description: Graphics clocks in MHz by index, or C(all), as V(1830) or a range V(1200,1830). Others are unlocked.
    type: dict
    default: {}
  memory_clocks:
    description: Memory clocks in MHz, in the same form. Others are left as they are.
    type: dict
    default: {}
  application_clocks:
    description:
      - Memory and graphics clock in MHz at which programs run, as V(2619,1830), by index or C(all). Others have the
        card's own. NVIDIA gives application clocks up; where the driver has none, they are refused.
    type: dict
    default: {}
  power_limit:
    description: Watts by index, or C(all). GPUs not named have the card's default.
    type: dict
    default: {}
  compute_mode:
    description: Who may use a GPU.
    type: str
    choices: [Default, Exclusive_Process, Prohibited]
    default: Default
  ecc:
    description: Whether memory is checked and corrected. Takes a reset or a reboot, which this module does not do.
    type: bool
    default: true
  mig:
    description: Whether GPUs are split into instances.
    type: bool
    default: false
  expected:
    description: The GPUs of the host, C(count) and default power limit (C(watts)), for a host without a driver.
    type: dict
    default: {}
  restored_by:
    description: The unit that applies the settings after each start of the persistence daemon.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Slow down the GPU that runs hot
  gpu_settings:
    locked_clocks: {3: 1830}
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Locked the graphics clock of GPU 3 at 1830 MHz.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each setting that differs on some GPU.
  returned: always
  type: list
  elements: dict
pending:
  description: Modes that wait for a reset of the GPU or a reboot, as sentences.
  returned: always
  type: list
  elements: str
"""

RECORD = "/var/lib/provision/gpu-settings.json"
LOCKED_BY = {"-lgc": "graphics", "-lmc": "memory"}  # nvidia-smi's switch, and the record of such locks
UNDER_WAY = "under way"  # no clock, so the next run makes the lock again where it is wanted, and undoes it where not
DAEMON = "nvidia-persistenced.service"


def units(restored_by: str) -> dict[str, dict[str, str]]:
    """What systemd says of the daemon that keeps the settings, and of the unit that brings them back."""
    return observe([name for name in (DAEMON, restored_by) if name])


def wait_until_restored(unit: str) -> dict[str, dict[str, str]]:
    """Let a restore that is under way end, so as to see its result; what systemd says then."""
    seen = units(unit)
    for _ in range(60):
        if not unit or seen[unit]["ActiveState"] != "activating":
            break
        time.sleep(0.5)
        seen = units(unit)
    return seen


def gpus(indexes: list[str]) -> str:
    """GPUs in words: "GPU 3", "GPUs 0, 1"."""
    return f"GPU{'s' if len(indexes) > 1 else ''} {', '.join(indexes)}"


def group(settings: list[tuple[str, Setting]]) -> dict[Setting, list[tuple[str, Setting]]]:
    """The same change on several GPUs together, in the order in which they came."""
    groups: dict[Setting, list[tuple[str, Setting]]] = {}
    for index, setting in settings:
        groups.setdefault(setting._replace(seen=""), []).append((index, setting))
    return groups


def look(wanted: dict[str, Any], check_mode: bool, rows: list[dict[str, str]]) -> bool:
    """Read all GPUs into `rows`; false where check mode knows that what was set stands once the driver is repaired."""
    unit = wanted["restored_by"]
    systemd = wait_until_restored(unit)
    comes_back = bool(unit) and systemd[unit]["UnitFileState"] == "enabled"
    try:
        rows += read_gpus()
    except LibraryMismatchError:
        if check_mode and comes_back:
            return False
        raise
    if not rows and not check_mode:
        raise HostError("nvidia-smi shows no GPU: the driver is not installed. Run the driver stage first.")
    if rows:
        refuse_unknown(wanted, rows)
    # Settings are lost for now where the daemon that keeps them is down, and come back when it starts.
    return not (rows and check_mode and comes_back and systemd[DAEMON]["ActiveState"] != "active")


def recorded() -> dict[str, Any]:
    """What earlier runs locked; nothing where the record is gone or is none."""
    try:
        return {"graphics": {}, "memory": {}, "quiet": [], **json.loads(read_text(RECORD) or "{}")}
    except (ValueError, TypeError):
        return {"graphics": {}, "memory": {}, "quiet": []}


def plan(wanted: dict[str, Any], check_mode: bool, rows: list[dict[str, str]]) -> Iterator[Change]:
    """What differs, one change for all GPUs that need it; `rows` receives what nvidia-smi shows."""
    record = recorded()
    if not look(wanted, check_mode, rows):
        return
    found = [
        (row["index"], setting) for row in rows or virgin_rows(wanted) for setting in differing(row, wanted, record)
    ]
    if found and rows:
        refuse_unlisted(wanted, rows)
    for setting, members in group(found).items():
        indexes = [index for index, _ in members]
        yield Change(
            setting.sentence.format(gpus(indexes)),
            lambda indexes=indexes, setting=setting: put(setting, indexes),
            f"nvidia-smi {setting.command[0]}",
            "".join(f"GPU {index}: {member.seen if rows else 'no driver yet'}\n" for index, member in members),
            "".join(f"GPU {index}: {member.wanted}\n" for index, member in members),
            setting.effect,
        )
    if found and rows and not check_mode:
        rows[:] = read_gpus()
    if not check_mode and any(setting.command[0] in ("-lgc", "-rgc", "-lmc", "-rmc") for _, setting in found):
        remember(wanted, rows, record, {index for index, setting in found if setting.command[0] == "-lgc"})


def put(setting: Setting, indexes: list[str]) -> None:
    """Have nvidia-smi set it. A lock is noted before: of one made by a run that was killed then, nothing else tells.

    One that is undone stays noted until that is done.
    """
    kind = LOCKED_BY.get(setting.command[0])
    if kind:
        noted = recorded()
        noted[kind].update(dict.fromkeys(indexes, UNDER_WAY))
        write_record(noted)
    run(["nvidia-smi", "-i", ",".join(indexes), *setting.command])


def write_record(noted: dict[str, Any]) -> None:
    """Note what is locked, for the next run."""
    write_file(RECORD, json.dumps(noted, indent=1) + "\n")


def remember(wanted: dict[str, Any], rows: list[dict[str, str]], before: dict[str, Any], just_locked: set[str]) -> None:
    """Note what is locked now, and which cards do not show a lock just made when they are idle."""
    after: dict[str, Any] = {"quiet": [index for index in before["quiet"] if index not in just_locked]}
    for row in rows:
        lock = value_for(wanted["locked_clocks"], row["index"])
        if row["index"] in just_locked and int(row["clocks.sm"]) < as_range(lock)[0]:
            after["quiet"].append(row["index"])
    for kind, name in (("graphics", "locked_clocks"), ("memory", "memory_clocks")):
        locks = {row["index"]: value_for(wanted[name], row["index"]) for row in rows}
        after[kind] = {index: lock for index, lock in locks.items() if lock}
    write_record(after)


def pending(rows: list[dict[str, str]], wanted: dict[str, Any], check_mode: bool) -> list[str]:
    """Modes that are asked for and not there yet: they wait for a reset or a reboot.

    Check mode asks for nothing, so it leaves out what will not wait: MIG of a card that changes it at once.
    """
    sentences = []
    for name in ("ecc", "mig"):
        word = "Enabled" if wanted[name] else "Disabled"
        late = [row["index"] for row in rows if row[f"{name}.mode.current"] not in ("[N/A]", word)]
        if late and name == "mig" and check_mode:
            at_once = {row["index"] for row in query_gpus(["index", "compute_cap"]) if is_mig_at_once(row)}
            late = [index for index in late if index not in at_once]
        if late:
            sentences.append(
                f"{name.upper()} mode of {gpus(late)} becomes {word} with the next reset of the GPU or reboot."
            )
    return sentences


def main() -> None:
    by_gpu = {"type": "dict", "default": {}}
    modes_of = ["Default", "Exclusive_Process", "Prohibited"]
    spec = {
        "locked_clocks": by_gpu,
        "memory_clocks": by_gpu,
        "application_clocks": by_gpu,
        "power_limit": by_gpu,
        "compute_mode": {"type": "str", "choices": modes_of, "default": "Default"},
        "ecc": {"type": "bool", "default": True},
        "mig": {"type": "bool", "default": False},
        "expected": {"type": "dict", "default": {}},
        "restored_by": {"type": "str", "default": ""},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    wanted = dict(module.params)
    for name in BY_GPU:
        wanted[name] = {str(key): value for key, value in wanted[name].items()}

    rows: list[dict[str, str]] = []

    def facts() -> dict[str, list[str]]:
        waiting = pending(rows, wanted, module.check_mode)
        for sentence in waiting:
            module.warn(sentence)
        return {"pending": waiting}

    converge(module, lambda: plan(wanted, module.check_mode, rows), facts)


if __name__ == "__main__":
    main()
