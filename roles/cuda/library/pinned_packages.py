#!/usr/bin/python
"""Ansible module: sets of packages in exactly one version: pinned, installed, and held against upgrades."""

from __future__ import annotations

import fnmatch
import os
import re
from typing import Any, Iterable, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_apt import Package, hold_changes, install, installed, lost_dependencies, satisfies
from ansible.module_utils.provision_host import Change, HostError, absent_change, converge, file_change, read_text
from ansible.module_utils.provision_transient import after

DOCUMENTATION = r"""
module: pinned_packages
short_description: Converges sets of Debian packages to one exact version each
description:
  - Each set has an apt pin of its own, C(/etc/apt/preferences.d/provision-NAME), so that its packages exist in one
    version on this host, up or down. What is missing of all sets, or is there in another version, or stopped half way,
    is installed in one transaction, the transient unit C(provision-pinned); an interrupted run leaves it at work and
    the next waits for it. Then the packages are held.
  - A set without packages is one that is no longer wanted. If it has a pin, this module once held its packages, which
    it then lets go; they stay installed.
options:
  sets:
    description: The sets.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The set's name, as in the name of its pin.
        type: str
        required: true
      packages:
        description: Packages, each as C(name=version).
        type: list
        elements: str
        default: []
      family:
        description: Patterns of the names of packages that belong to the set. Those that are installed are held too.
        type: list
        elements: str
        default: []
  source:
    description: The apt source that has the packages. It is another role's; this module expects it.
    type: path
    required: true
  lock_timeout:
    description: Seconds to wait for another process that holds apt's lock.
    type: int
    default: 300
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Install and hold NCCL
  pinned_packages:
    sets:
      - name: nccl
        packages: [libnccl2=2.28.9-1+cuda13.0, libnccl-dev=2.28.9-1+cuda13.0]
    source: /etc/apt/sources.list.d/provision-nvidia.sources
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Installed libnccl2., Held the packages of nccl against upgrades.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each pin, one for the packages, and one for the holds of each set, that differ.
  returned: always
  type: list
  elements: dict
"""

PINS = "/etc/apt/preferences.d"
UNIT = "provision-pinned"


def pin_of(name: str) -> str:
    """Where the pin of a set is."""
    return f"{PINS}/provision-{name}"


def versions(one: dict[str, Any]) -> dict[str, str]:
    """The packages of a set by name, each with its version; without one they could not be pinned."""
    found = dict(spec.split("=", 1) for spec in one["packages"] if "=" in spec)
    loose = [spec for spec in one["packages"] if not found.get(spec.partition("=")[0])]
    if loose:
        raise HostError(
            f"{one['name']}: {', '.join(loose)} names no version; write it as {loose[0].strip('=')}=1.2.3-1."
        )
    return found


def pin_text(wanted: dict[str, str]) -> str:
    """The pin of a set: above 1000 apt installs the version even if that is a step down."""
    entries = (f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n" for name, version in wanted.items())
    return "# Written by provision (role cuda).\n" + "\n".join(entries)


def members(one: dict[str, Any], present: dict[str, Package], named: set[str]) -> list[str]:
    """The installed packages of a set: those that are named, and those of its family."""
    patterns = [*named, *one["family"]]
    return sorted(name for name in present if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def plan_retired(one: dict[str, Any]) -> Iterator[Change]:
    """Let the packages of a set go that nobody wants any more, and then forget it: the pin is what remembers it."""
    pinned = read_text(pin_of(one["name"]))
    if pinned is not None:
        present = installed()
        named = set(re.findall(r"^Package: (\S+)$", pinned, re.MULTILINE))
        held = [name for name in members(one, present, named) if present[name].held]
        yield from _holds(one["name"], held, held=False)
    yield from absent_change(pin_of(one["name"]))


def missing_packages(wanted: dict[str, str]) -> dict[str, str]:
    """What is absent, half done or of another version: of the packages, and of what they need."""
    present = installed()
    asked = {**dict.fromkeys(lost_dependencies(wanted, present), ""), **wanted}
    return {name: version for name, version in asked.items() if not satisfies(present.get(name), version)}


def plan_packages(missing: dict[str, str], source: str, lock_timeout_s: int) -> Iterator[Change]:
    """One transaction for all that is missing."""
    if missing:
        present = installed()
        before = {name: present[name].version if name in present else "absent" for name in missing}
        yield Change(
            sentence(missing, present),
            lambda: install_from(source, missing, lock_timeout_s),
            "pinned packages",
            "".join(f"{name}: {before[name]}\n" for name in sorted(missing)),
            "".join(f"{name}: {missing[name] or 'installed'}\n" for name in sorted(missing)),
        )


def sentence(missing: dict[str, str], present: dict[str, Package]) -> str:
    """What an installation does: to packages that are there, and to those that are not."""
    new = sorted(name for name in missing if name not in present)
    changed = sorted(f"{name} to {missing[name] or 'whole'}" for name in missing if name in present)
    parts = ([f"Installed {', '.join(new)}"] if new else []) + ([f"Changed {', '.join(changed)}"] if changed else [])
    return ". ".join(parts) + "."


def install_from(source: str, missing: dict[str, str], lock_timeout_s: int) -> None:
    """Install, from a source that must be there."""
    if not os.path.exists(source):
        raise HostError(
            f"{', '.join(sorted(missing))} come from NVIDIA's repository, and {source} is not on this host: the stage "
            "driver writes it. Run bootstrap without --stage, or with --stage driver,cuda."
        )
    install(missing, lock_timeout_s, UNIT, ("--allow-downgrades", "--allow-change-held-packages"))


def plan_holds(one: dict[str, Any], fresh: Iterable[str]) -> Iterator[Change]:
    """Hold a set. What was just installed counts as free, whatever apt made of a hold: both modes say the same."""
    named = set(versions(one))
    present = {**installed(), **{name: Package("", held=False) for name in fresh}}
    yield from _holds(one["name"], [name for name in members(one, present, named) if not present[name].held], held=True)


def _holds(name: str, packages: list[str], held: bool) -> Iterator[Change]:
    for change in hold_changes(packages, held):
        verb, what = ("Held", "against upgrades") if held else ("Released", "for upgrades")
        change.action = f"{verb} the packages of {name} {what}."
        change.header = f"apt holds of {name}"
        yield change


def plan(sets: list[dict[str, Any]], source: str, lock_timeout_s: int) -> Iterator[Change]:
    """Sets that are not wanted any more, pins, packages, holds."""
    wanted: dict[str, str] = {}
    for one in sets:
        if one["packages"]:
            own = versions(one)
            wanted.update(own)
            yield from file_change(pin_of(one["name"]), pin_text(own))
        else:
            yield from plan_retired(one)
    missing = missing_packages(wanted)
    yield from plan_packages(missing, source, lock_timeout_s)
    for one in sets:
        if one["packages"]:
            yield from plan_holds(one, missing)


def main() -> None:
    names = {"type": "list", "elements": "str", "default": []}
    one = {"name": {"type": "str", "required": True}, "packages": names, "family": names}
    spec = {
        "sets": {"type": "list", "elements": "dict", "required": True, "options": one},
        "source": {"type": "path", "required": True},
        "lock_timeout": {"type": "int", "default": 300},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    sets, source, lock_timeout_s = (module.params[name] for name in ("sets", "source", "lock_timeout"))
    converge(module, lambda: after(UNIT, module.check_mode, lambda: plan(sets, source, lock_timeout_s)))


if __name__ == "__main__":
    main()
