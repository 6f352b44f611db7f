"""The program that looks at a host, as one text: all that it imports comes with it, and stays in memory.

The verifier of receipts unpacks itself on a host to be quick the next time. This one promises to leave a host as it is,
and must run where the disk is full.
"""

from __future__ import annotations

import base64
import json
import zlib
from functools import cache
from importlib.resources import files

from provision.content import content_root

HERE = "provision.preflight.host"
THEIRS = "provision.drift.host"  # who changed a package is told there
PACKAGES = ("ansible", "ansible.module_utils", "provision", "provision.preflight", HERE, "provision.drift", THEIRS)
PROGRAM = """\
import base64, importlib.abc, importlib.util, json, sys, zlib

SOURCES = json.loads(zlib.decompress(base64.b85decode({payload!r})))
PACKAGES = {packages!r}


class InMemory(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name in SOURCES:
            return importlib.util.spec_from_loader(name, self, is_package=name in PACKAGES)

    def exec_module(self, module):
        exec(compile(SOURCES[module.__name__], module.__name__, "exec"), module.__dict__)


sys.meta_path.insert(0, InMemory())
from {here}.main import main

main({request!r})
"""


def program(request: str) -> str:
    """The text for a host's Python to read, with what is asked in it: secrets do not show in a list of processes."""
    return PROGRAM.format(payload=_payload(), packages=PACKAGES, here=HERE, request=request)


@cache
def _payload() -> str:
    sources = dict.fromkeys(PACKAGES, "")
    for path in content_root().glob("roles/*/module_utils/*.py"):
        sources[f"ansible.module_utils.{path.stem}"] = path.read_text(encoding="utf-8")
    for package in (HERE, THEIRS):
        for entry in files(package).iterdir():
            if entry.name.endswith(".py") and entry.name != "__init__.py":
                sources[f"{package}.{entry.name.removesuffix('.py')}"] = entry.read_text(encoding="utf-8")
    return base64.b85encode(zlib.compress(json.dumps(sources, sort_keys=True).encode(), 9)).decode()
