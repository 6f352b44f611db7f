#!/usr/bin/python
"""Ansible module: kernel tunables, both as the kernel has them now and as it will have them after a reboot."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Callable, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import Change, HostError, converge, file_change

DOCUMENTATION = r"""
module: kernel_tunables
short_description: Converges sysctls and files of sysfs, live and over reboots
description:
  - Compares each tunable with what the kernel has now, and the files that set it at boot with what they should say.
    Either is repaired alone.
  - A tunable that this kernel does not have is refused by its name, with the nearest one that it has.
options:
  sysctls:
    description: Values by the sysctl's name.
    type: dict
    default: {}
  sysfs:
    description: Values by path below C(/sys). A file that shows its choices, one in brackets, is compared by that one.
    type: dict
    default: {}
  sysctl_file:
    description: The file that sets the sysctls at boot; wholly owned by this module.
    type: str
    default: /etc/sysctl.d/90-provision.conf
  tmpfiles_file:
    description: The file that sets those of sysfs at boot; wholly owned by this module.
    type: str
    default: /etc/tmpfiles.d/90-provision.conf
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Set what serving wants of the kernel
  kernel_tunables:
    sysctls:
      vm.swappiness: 1
    sysfs:
      /sys/kernel/mm/transparent_hugepage/enabled: madvise
"""

RETURN = r"""
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: ["Set vm.swappiness to 1 (it was 60)."]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each tunable and each file that differs.
  returned: always
  type: list
  elements: dict
overridden:
  description: Files that are read later at boot and set one of the tunables otherwise, as sentences.
  returned: always
  type: list
  elements: str
  sample: [/etc/sysctl.d/99-sysctl.conf sets vm.swappiness to 60 at boot.]
"""

PROC_SYS = Path("/proc/sys")
HEADER = "# Written by provision (role host); changes made here are undone by its next run.\n"
SYSCTL_FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")


def normal(value: object) -> str:
    """A value as it is compared: the kernel separates the numbers of one tunable by tabs."""
    return " ".join(str(value).split())


def path_of(key: str) -> Path:
    """The file behind a sysctl; as sysctl does, a `/` in the name stands for a dot that belongs to it (`eth0/100`)."""
    return PROC_SYS / key.translate(str.maketrans("./", "/."))


def refuse_unknown(sysctls: dict[str, str], sysfs: dict[str, str]) -> None:
    """Stop before anything is changed if this kernel lacks one of the tunables."""
    sentences = []
    for key in (key for key in sysctls if not path_of(key).is_file()):
        section = path_of(key).parent
        names = [f"{key.rsplit('.', 1)[0]}.{file.name}" for file in section.iterdir()] if section.is_dir() else []
        near = difflib.get_close_matches(key, names, n=1)
        sentences.append(f"{key} is not a sysctl of this kernel" + (f"; it has {near[0]}." if near else "."))
    sentences += [f"{path} is not a file of this kernel." for path in sysfs if not Path(path).is_file()]
    if sentences:
        raise HostError(" ".join(sentences) + " Nothing was changed; correct the inventory and run again.")


def live(path: Path) -> str:
    """What the kernel has now; of `always [madvise] never`, the word in brackets."""
    text = path.read_text(encoding="ascii")
    chosen = re.search(r"\[(\S+)\]", text)
    return chosen.group(1) if chosen else normal(text)


def put(path: Path, name: str, value: str) -> None:
    """Hand a value to the kernel."""
    try:
        path.write_text(value + "\n", encoding="ascii")
    except OSError as error:
        raise HostError(f"The kernel does not take {value!r} for {name}: {error.strerror}.") from None
    if live(path) != value:
        raise HostError(
            f"The kernel took {value!r} for {name} and made {live(path)!r} of it. Say that in the inventory, if it is "
            "what is meant, or another value."
        )


def live_changes(values: dict[str, str], find: Callable[[str], Path]) -> Iterator[Change]:
    """The tunables that the kernel has otherwise now."""
    for name, value in values.items():
        path = find(name)
        now = live(path)
        if now != value:
            yield Change(
                f"Set {name} to {value} (it was {now}).",
                lambda path=path, name=name, value=value: put(path, name, value),
                name,
                f"{now}\n",
                f"{value}\n",
            )


def overridden(sysctls: dict[str, str], own: Path) -> list[str]:
    """What will undo our file at boot: files of other owners with a later name, which set the same keys otherwise."""
    later = {}
    for folder in map(Path, reversed(SYSCTL_FOLDERS)):  # a file of an earlier folder masks its namesake
        later.update({file.name: file for file in folder.glob("*.conf") if file.name > own.name})
    found = []
    for _, file in sorted(later.items()):
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        for key, value in re.findall(r"^\s*-?([\w./-]+)\s*=\s*(.*?)\s*$", text, re.MULTILINE):
            if normal(value) != sysctls.get(key.replace("/", "."), normal(value)):
                found.append(f"{file} sets {key} to {value} at boot, after {own.name}; remove that line.")
    return found


def plan(sysctls: dict[str, str], sysfs: dict[str, str], sysctl_file: str, tmpfiles_file: str) -> Iterator[Change]:
    """Files first: a crash in between leaves a host that the next run, and the next boot, put right."""
    refuse_unknown(sysctls, sysfs)
    lines = "".join(f"{key} = {value}\n" for key, value in sorted(sysctls.items()))
    yield from file_change(sysctl_file, HEADER + lines, f"Wrote the sysctls to {sysctl_file}.")
    lines = "".join(f"w {path} - - - - {value}\n" for path, value in sorted(sysfs.items()))
    yield from file_change(tmpfiles_file, HEADER + lines)
    yield from live_changes(sysctls, path_of)
    yield from live_changes(sysfs, Path)


def main() -> None:
    spec = {
        "sysctls": {"type": "dict", "default": {}},
        "sysfs": {"type": "dict", "default": {}},
        "sysctl_file": {"type": "str", "default": "/etc/sysctl.d/90-provision.conf"},
        "tmpfiles_file": {"type": "str", "default": "/etc/tmpfiles.d/90-provision.conf"},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    wanted = module.params
    sysctls = {key: normal(value) for key, value in wanted["sysctls"].items()}
    sysfs = {path: normal(value) for path, value in wanted["sysfs"].items()}

    def facts() -> dict[str, list[str]]:
        found = overridden(sysctls, Path(wanted["sysctl_file"]))
        for sentence in found:
            module.warn(sentence)
        return {"overridden": found}

    converge(module, lambda: plan(sysctls, sysfs, wanted["sysctl_file"], wanted["tmpfiles_file"]), facts)


if __name__ == "__main__":
    main()
