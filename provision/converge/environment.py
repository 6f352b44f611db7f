"""The settings under which Ansible runs: those of the tree's ansible.cfg, which an installed wheel does not have."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from provision.ssh.options import SSH_OPTIONS, control_directory

# Pipelining means more than speed: without it a module's arguments touch the host's disk.
SETTINGS = {
    "ANSIBLE_HOST_KEY_CHECKING": "True",  # ansible-runner turns it off where this is not set
    "ANSIBLE_PIPELINING": "True",
    "ANSIBLE_INJECT_FACT_VARS": "False",
    "ANSIBLE_PYTHON_INTERPRETER": "auto_silent",
    "ANSIBLE_RETRY_FILES_ENABLED": "False",
    "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml",
    "ANSIBLE_SSH_ARGS": " ".join(f"-o {option}" for option in SSH_OPTIONS),
    "ANSIBLE_INVENTORY_IGNORE_REGEX": r"stack\.lock\.yml$",
    "ANSIBLE_STRATEGY": "linear",  # hosts go from stage to stage together; the events and the display rely on it
    "ANSIBLE_STDOUT_CALLBACK": "default",
    "ANSIBLE_NOCOLOR": "True",
    "ANSIBLE_NOCOWS": "True",
}


def environment(root: Path) -> dict[str, str]:
    """What Ansible gets on top of the user's environment, to run the playbooks and roles under `root`."""
    roles = sorted(path for path in (root / "roles").iterdir() if path.is_dir())
    found = {
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(control_directory()),
        "ANSIBLE_CALLBACK_PLUGINS": _added("ANSIBLE_CALLBACK_PLUGINS", str(root / "playbooks/callbacks"), os.pathsep),
        "ANSIBLE_CALLBACKS_ENABLED": _added("ANSIBLE_CALLBACKS_ENABLED", "stop_between_tasks", ","),
        "ANSIBLE_ROLES_PATH": str(root / "roles"),
        "ANSIBLE_LIBRARY": _paths(path / "library" for path in roles),
        "ANSIBLE_MODULE_UTILS": _paths(path / "module_utils" for path in roles),
        # ansible-runner looks for ansible-playbook on the PATH, where another installation of it may come first
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    config = Path("ansible.cfg")
    if "ANSIBLE_CONFIG" not in os.environ and config.is_file() and not Path.cwd().stat().st_mode & stat.S_IWOTH:
        found["ANSIBLE_CONFIG"] = str(config.resolve())  # Ansible itself runs elsewhere and would not see it
    return {name: value for name, value in (SETTINGS | found).items() if value}


def _paths(paths: Iterable[Path]) -> str:
    return os.pathsep.join(str(path) for path in paths if path.is_dir())


def _added(variable: str, ours: str, separator: str) -> str:
    """What the user's environment has in a list, and ours."""
    return separator.join(filter(None, [ours, os.environ.get(variable)]))
