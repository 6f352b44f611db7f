#!/usr/bin/python
"""Ansible module: a Python environment that holds exactly what was asked for, built beside its place and renamed."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from functools import partial
from pathlib import Path
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import Change, converge, read_text, run, sha256_text
from ansible.module_utils.provision_python_env import AS_RECORDED, RECORD, STAMP, build
from ansible.module_utils.provision_transient import after

DOCUMENTATION = r"""
module: python_env
short_description: Converges a Python environment to an exact list of packages
description:
  - uv builds the environment under a temporary name, its imports are tried, it is synced to disk and renamed. The work
    is a transient systemd unit, which an interrupted run leaves at work and the next waits for.
  - Every file is stamped with one modification time when it is installed, and listed with its size and mode. A file
    that was changed, added, removed, or given to another since is found by that, and the environment is built anew
    beside the old one.
options:
  directory:
    description:
      - Where environments lie that are named by a hash of what they hold. They are never changed in place.
      - Of the others there, what a unit or a process still uses stays for the way back, or else the newest; the rest
        goes once the wanted one is whole.
    type: path
  path:
    description: One environment at a fixed place; it is replaced when what it should hold changes.
    type: path
  requirements:
    description: What to install, exact.
    type: list
    elements: str
    required: true
  excludes:
    description: Distributions that are left out although something depends on them.
    type: list
    elements: str
    default: []
  local_packages:
    description: Distributions made on the spot from source text, without a build tool.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The distribution's name.
        type: str
        required: true
      version:
        description: Its version.
        type: str
        required: true
      files:
        description: Text of each file, by its path below C(site-packages).
        type: dict
        required: true
      entry_points:
        description: Text of C(entry_points.txt).
        type: str
        default: ""
  imports:
    description: Modules that must import before the environment is put in place.
    type: list
    elements: str
    default: []
  compile:
    description: Whether all files are compiled ahead; takes a minute of one core for ten thousand files.
    type: bool
    default: false
  warm:
    description: Modules that are imported too if they can be, so that what they need is compiled ahead.
    type: list
    elements: str
    default: []
  python:
    description: The interpreter, as uv is asked for it; the host's own is taken where it satisfies this.
    type: str
    default: ">=3.9"
  uv:
    description: The uv program to use.
    type: path
  bootstrap:
    description: Instead of O(uv), a requirement such as C(uv==1.2.3) that pip fetches for the time of the build.
    type: str
  index_url:
    description: The package index; empty for PyPI.
    type: str
    default: ""
  extra_index_urls:
    description: More indexes. Of all indexes the best version is taken, as pip does.
    type: list
    elements: str
    default: []
  find_links:
    description: Directories or pages with more wheels.
    type: list
    elements: str
    default: []
  cache:
    description: uv's cache of downloads.
    type: path
    default: /var/cache/provision/uv
  unit:
    description: Name of the transient unit that builds.
    type: str
    required: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Build the serving environment
  python_env:
    directory: /opt/provision/env
    requirements: [vllm==0.32.0, ray==2.60.0]
    imports: [vllm, ray]
    uv: /opt/provision/tools/bin/uv
    unit: provision-serving-env
"""

RETURN = r"""
location:
  description: Where the environment is, or will be.
  returned: always
  type: str
  sample: /opt/provision/env/5d1ac6b2f9c0
lock_sha256:
  description: SHA-256 of the list of installed versions (C(PATH/.provision/lock.txt)); empty before it is built.
  returned: always
  type: str
present:
  description: Whether the environment is there, as it should be.
  returned: always
  type: bool
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: ["Built /opt/provision/env/5d1ac6b2f9c0: vllm==0.32.0, ray==2.60.0."]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry when the environment is not what it should be.
  returned: always
  type: list
  elements: dict
"""


BY_HASH = re.compile(r"[0-9a-f]{12}(\.gone)?")
GONE = ".gone"  # what is being removed is called so
UNITS = "/etc/systemd/system"


def wanted_text(params: dict[str, Any]) -> str:
    """What the environment shall hold, as text; equal texts mean equal environments."""
    keys = ("requirements", "excludes", "local_packages", "python")
    return json.dumps({key: params[key] for key in keys}, sort_keys=True, indent=1) + "\n"


def place(params: dict[str, Any]) -> str:
    """Where the environment belongs."""
    if params["path"]:
        return str(params["path"])
    return f"{params['directory']}/{sha256_text(wanted_text(params))[:12]}"


def describe(seen: os.stat_result, is_directory: bool) -> str:
    """Size and mode as they were listed at the installation; a file that was touched since has other words."""
    if (seen.st_uid, seen.st_gid) != (os.geteuid(), os.getegid()):
        return "another owner"
    if is_directory:
        return f"d {stat.S_IMODE(seen.st_mode):o}"
    return f"{seen.st_size} {stat.S_IMODE(seen.st_mode):o}" if seen.st_mtime == STAMP else "changed"


def installed_files(env: str) -> dict[str, str]:
    """Everything in the environment by path, in the words of its record."""
    found = {"": describe(os.stat(env), is_directory=True)}

    def walk(folder: str, prefix: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_directory, path = entry.is_dir(follow_symlinks=False), prefix + entry.name
                if is_directory and (entry.name == "__pycache__" or path == RECORD):
                    continue
                found[path] = describe(entry.stat(follow_symlinks=False), is_directory)
                if is_directory:
                    walk(entry.path, f"{path}/")

    walk(env, "")
    return found


def is_as_recorded(env: str) -> bool:
    """Whether everything is there as `installed_files` would list it, asked of `find`: in a third of the time.

    It says yes only where it is sure; what differs, if anything does, `unlike_record` finds out.
    """
    return (
        run(["sh", "-c", AS_RECORDED, "sh", env, str(STAMP), str(os.geteuid()), str(os.getegid())], check=False).rc == 0
    )


def unlike_record(env: str, recorded: str) -> list[str]:
    """What is missing, changed or somebody else's, a line each."""
    listed = dict(line.rsplit("\t", 1) for line in recorded.splitlines())
    there = installed_files(env)
    lines = [f"{path or '.'}: missing" for path in listed.keys() - there.keys()]
    lines += [f"{path or '.'}: changed" for path in listed.keys() & there.keys() if listed[path] != there[path]]
    return lines + [f"{path}: not installed by us" for path in there.keys() - listed.keys()]


def record_is_touched(env: str) -> bool:
    """Whether somebody wrote in the record itself since the installation."""
    paths = (f"{env}/{RECORD}/{name}" for name in ("files", "lock.txt", "wanted.json"))
    return any(os.path.exists(path) and os.stat(path).st_mtime != STAMP for path in paths)


def differences(env: str, wanted: str) -> list[str]:
    """Why the environment is not the wanted one; empty if it is."""
    recorded = read_text(f"{env}/{RECORD}/files")
    if not os.path.isdir(env):
        return ["absent"]
    if recorded is None or read_text(f"{env}/{RECORD}/lock.txt") is None:
        return ["unfinished"]
    if read_text(f"{env}/{RECORD}/wanted.json") != wanted:
        return ["another list of packages"]
    lines = [] if is_as_recorded(env) else unlike_record(env, recorded)
    lines += [f"{RECORD}: changed"] if record_is_touched(env) else []
    if not lines and not os.path.exists(f"{env}/bin/python"):
        lines.append("bin/python: the interpreter that it points to is gone")
    return sorted(lines)


def unused(params: dict[str, Any]) -> list[str]:
    """The environments that are neither wanted nor the way back, and what is left of such.

    The way back is what units and processes still use, which is before they are started with the wanted one; later,
    when nothing uses another, it is the newest, and so the same.
    """
    if not params["directory"]:
        return []
    found = [path for path in sorted(Path(params["directory"]).glob("*")) if BY_HASH.fullmatch(path.name)]
    others = [path for path in found if str(path) != place(params) and not path.suffix and (path / RECORD).is_dir()]
    used = uses() if len(others) > 1 else ""
    newest = sorted(others, key=lambda path: os.stat(path / RECORD).st_mtime)[-1:]
    kept = [path for path in others if f"{path}/" in used] or newest
    return [str(path) for path in found if path not in kept and (path in others or path.suffix == GONE)]


def uses() -> str:
    """What units and processes are started with, as one text."""
    units = (read_text(str(path)) or "" for path in sorted(Path(UNITS).glob("*.service")))
    return "\n".join([*units, *map(command_line, Path("/proc").glob("[0-9]*"))])


def command_line(process: Path) -> str:
    """The words of a process; empty if it has ended meanwhile."""
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def remove(path: str) -> None:
    """Take an environment away, which nobody shall find in part."""
    away = path if path.endswith(GONE) else path + GONE
    if path != away:
        shutil.rmtree(away, ignore_errors=True)
        os.rename(path, away)
    shutil.rmtree(away)


def plan(params: dict[str, Any]) -> Iterator[Change]:
    """Build the environment unless it is there, whole and untouched; then make room."""
    yield from plan_build(params)
    for path in unused(params):
        yield Change(
            f"Removed {path}, which nothing uses.", partial(remove, path), path, "an environment\n", "absent\n"
        )


def plan_build(params: dict[str, Any]) -> Iterator[Change]:
    """Build the environment unless it is there, whole and untouched."""
    target, wanted = place(params), wanted_text(params)
    why = differences(target, wanted)
    if not why:
        return
    listed = ", ".join(params["requirements"])
    if why == ["absent"]:
        sentence = f"Built {target}: {listed}."
    else:
        more = f" and {len(why) - 1} more" if len(why) > 1 else ""
        sentence = f"Rebuilt {target}: {listed}. What was there differed: {why[0]}{more}."
    before = "".join(f"{line}\n" for line in why[:50])
    yield Change(sentence, lambda: build(params, target, wanted), target, before, wanted)


def facts(params: dict[str, Any]) -> dict[str, Any]:
    """Where the environment is and what it holds, as it is now."""
    target = place(params)
    lock = read_text(f"{target}/{RECORD}/lock.txt")
    present = lock is not None and read_text(f"{target}/{RECORD}/wanted.json") == wanted_text(params)
    return {"location": target, "lock_sha256": sha256_text(lock) if lock else "", "present": present}


def main() -> None:
    package = {
        "name": {"type": "str", "required": True},
        "version": {"type": "str", "required": True},
        "files": {"type": "dict", "required": True},
        "entry_points": {"type": "str", "default": ""},
    }
    texts = {"type": "list", "elements": "str"}
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path"},
            "path": {"type": "path"},
            "requirements": {**texts, "required": True},
            "excludes": {**texts, "default": []},
            "local_packages": {"type": "list", "elements": "dict", "default": [], "options": package},
            "imports": {**texts, "default": []},
            "compile": {"type": "bool", "default": False},
            "warm": {**texts, "default": []},
            "python": {"type": "str", "default": ">=3.9"},
            "uv": {"type": "path"},
            "bootstrap": {"type": "str"},
            "index_url": {"type": "str", "default": ""},
            "extra_index_urls": {**texts, "default": []},
            "find_links": {**texts, "default": []},
            "cache": {"type": "path", "default": "/var/cache/provision/uv"},
            "unit": {"type": "str", "required": True},
        },
        mutually_exclusive=[("directory", "path"), ("uv", "bootstrap")],
        required_one_of=[("directory", "path"), ("uv", "bootstrap")],
        supports_check_mode=True,
    )
    converge(
        module,
        lambda: after(module.params["unit"], module.check_mode, lambda: plan(module.params)),
        lambda: facts(module.params),
        forget=["index_url", "extra_index_urls"],  # may hold a password, and say nothing of what is installed
    )


if __name__ == "__main__":
    main()
