from __future__ import annotations

import configparser
import sys
from pathlib import Path

from provision.content import content_root
from provision.converge.environment import environment

# ansible.cfg is for those who call ansible-playbook in the tree; an installed provision has none and sets the same.
NAMES = {
    "host_key_checking": "ANSIBLE_HOST_KEY_CHECKING",
    "pipelining": "ANSIBLE_PIPELINING",
    "inject_facts_as_vars": "ANSIBLE_INJECT_FACT_VARS",
    "interpreter_python": "ANSIBLE_PYTHON_INTERPRETER",
    "retry_files_enabled": "ANSIBLE_RETRY_FILES_ENABLED",
    "callback_result_format": "ANSIBLE_CALLBACK_RESULT_FORMAT",
    "ssh_args": "ANSIBLE_SSH_ARGS",
    "ignore_patterns": "ANSIBLE_INVENTORY_IGNORE_REGEX",
}
OF_THE_TREE = {"roles_path", "library", "module_utils", "forks"}


def test_it_is_what_ansible_cfg_says():
    config = configparser.ConfigParser(interpolation=None)
    config.read(content_root() / "ansible.cfg")
    said = {key: value for section in config.values() for key, value in section.items() if key not in OF_THE_TREE}
    found = environment(content_root())
    assert {key: found[NAMES[key]] for key in said} == said


def test_every_roles_modules_are_found():
    root = content_root()
    libraries = environment(root)["ANSIBLE_LIBRARY"].split(":")
    assert {Path(path).parent.name for path in libraries} == {path.parent.name for path in root.glob("roles/*/library")}


def test_this_interpreters_ansible_comes_first(monkeypatch):
    monkeypatch.setenv("PATH", "/elsewhere")
    assert environment(content_root())["PATH"] == f"{Path(sys.executable).parent}:/elsewhere"


def test_the_users_ansible_cfg_beside_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "ANSIBLE_CONFIG" not in environment(content_root())
    (tmp_path / "ansible.cfg").write_text("")
    assert environment(content_root())["ANSIBLE_CONFIG"] == str(tmp_path / "ansible.cfg")
    tmp_path.chmod(0o777)
    assert "ANSIBLE_CONFIG" not in environment(content_root())
