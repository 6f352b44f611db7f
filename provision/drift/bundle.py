"""The verifier as one text: a Python program that holds all that it needs, unpacks it on the host once, and runs it."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from functools import cache
from importlib.resources import files

from provision.content import content_root

HOST_CODE = "provision/drift/host"
RUN = "/run/provision"
ENTRY = "verify.py"
# On the host the modules find this project's `basic` where Ansible's would be.
SHIM = {"basic.py": "ansible/module_utils/basic.py"}
START = """\
import sys

sys.path.insert(0, {directory!r})
from provision.drift.host.main import main

sys.exit(main(sys.argv[1:]))
"""
PROGRAM = '''\
#!/usr/bin/python3 -IS
"""Verifies the receipts of `provision bootstrap` on this host. Written by provision; `--help` says more."""
import base64, json, os, shutil, sys, tempfile, time, zlib

DIRECTORY = {directory!r}
FILES = {payload!r}


def unpack():
    """Put the files in place whole; what other versions left is removed when nobody can still be at it."""
    parent = os.path.dirname(DIRECTORY)
    os.makedirs(parent, 0o755, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=".verify-", dir=parent)
    for name, text in json.loads(zlib.decompress(base64.b85decode(FILES))).items():
        path = os.path.join(temporary, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    try:
        os.rename(temporary, DIRECTORY)
    except OSError:  # another was first
        shutil.rmtree(temporary)
    for name in os.listdir(parent):
        other = os.path.join(parent, name)
        is_ours = name.startswith(("verify-", ".verify-")) and other != DIRECTORY
        if is_ours and os.path.isdir(other) and os.stat(other).st_mtime < time.time() - 3600:
            shutil.rmtree(other, ignore_errors=True)


if not os.path.isdir(DIRECTORY):
    unpack()
sys.path.insert(0, DIRECTORY)
from provision.drift.host.main import main

sys.exit(main(sys.argv[1:]))
'''


@cache
def verifier_text(run: str = RUN) -> str:
    """The text of the verifier; the same text for the same code."""
    directory = directory_of(run)
    packed = {**_files(), ENTRY: START.format(directory=directory)}
    payload = base64.b85encode(zlib.compress(json.dumps(packed, sort_keys=True).encode(), 9)).decode()
    return PROGRAM.format(directory=directory, payload=payload)


@cache
def directory_of(run: str = RUN) -> str:
    """Where the verifier unpacks itself: a name that changes with the code."""
    text = json.dumps([_files(), START, PROGRAM], sort_keys=True)
    return f"{run}/verify-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@cache
def _files() -> dict[str, str]:
    """All files by their path on the host: the roles' modules, what these share, and what verifies with them."""
    roles = content_root() / "roles"
    found = {
        "ansible/__init__.py": "",
        "ansible/module_utils/__init__.py": "",
        "provision/__init__.py": "",
        "provision/drift/__init__.py": "",
        "provision_library/__init__.py": "",
    }
    for path in roles.glob("*/library/*.py"):
        found[f"provision_library/{path.name}"] = path.read_text(encoding="utf-8")
    for path in roles.glob("*/module_utils/*.py"):
        found[f"ansible/module_utils/{path.name}"] = path.read_text(encoding="utf-8")
    for entry in (files("provision") / "drift/host").iterdir():
        if entry.name.endswith(".py"):
            found[SHIM.get(entry.name, f"{HOST_CODE}/{entry.name}")] = entry.read_text(encoding="utf-8")
    return found
