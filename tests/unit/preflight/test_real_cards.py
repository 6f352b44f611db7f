"""What preflight's program and the probe of `provision status` make of what real cards answered."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

from ansible.module_utils import provision_driver

import provision.serving
from provision.preflight.host import nvidia

EXAMPLES = Path(__file__).parents[1] / "examples/preflight"


def test_preflight_tells_of_them_what_it_told_there(real, monkeypatch) -> None:
    for module in (nvidia, provision_driver):
        monkeypatch.setattr(module, "run", real.run)
    monkeypatch.setattr(provision_driver, "read_text", real.read)
    monkeypatch.setattr(nvidia, "holders", dict)
    assert nvidia.look({}) == json.loads((EXAMPLES / f"{real.name}.json").read_text())["nvidia"]


def test_status_shows_them_as_it_did_there(real, monkeypatch, capsys) -> None:
    def answer(argv, **_):
        done = real.run(argv)
        return subprocess.CompletedProcess(argv, done.rc, done.out, done.err)

    monkeypatch.setattr(subprocess, "run", answer)
    monkeypatch.setattr(sys, "argv", ["probe", json.dumps({"units": [], "endpoint": None})])
    runpy.run_path(str(Path(provision.serving.__file__).parent / "probe.py"))
    told = json.loads(capsys.readouterr().out)
    assert (told["gpus"], told["gpu_error"]) == (real.probe["gpus"], None)
