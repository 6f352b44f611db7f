"""A simulated host's programs and state, without a host: the programs run on this machine, on a state in a directory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from provision.lab.hardware import factory, state
from provision.lab.hardware.edge import copy_programs

VERSION = "580.159.04"


@dataclass
class Host:
    programs: Path
    state_file: Path

    def run(self, program: str, *arguments: str, version: str = VERSION) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-SEs", str(self.programs / "run.py"), program, version, *arguments]
        environment = {**os.environ, "LAB_STATE": str(self.state_file), "TZ": "UTC"}
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)

    def smi(self, *arguments: str) -> str:
        return self.run("nvidia_smi", *arguments).stdout

    def change(self) -> state.Change:
        return state.Change(str(self.state_file))

    def read(self) -> dict[str, object]:
        return state.read(str(self.state_file))


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lab-hardware") / "programs"
    copy_programs(home)
    return home


@pytest.fixture
def bare(programs: Path, tmp_path: Path) -> Callable[[str | None], Host]:
    """A host as it comes from the factory, booted once."""

    def make(profile: str | None) -> Host:
        host = Host(programs, tmp_path / "hw" / "state.json")
        factory.create(host.state_file, profile, "node-1")
        factory.power_on(host.state_file)
        return host

    return make


@pytest.fixture
def ready(bare: Callable[[str | None], Host]) -> Callable[..., Host]:
    """A host with the driver installed and loaded, GPUs persistent, the fabric routed."""

    def make(profile: str = "8xh200-141") -> Host:
        host = bare(profile)
        with host.change() as hardware:
            hardware["modules"].remove("nouveau")
            hardware["driver"]["installed"] = VERSION
            state.load_module(hardware, "nvidia")
            for gpu in hardware["gpus"]:
                gpu["persistence"] = True
                gpu["fabric"] = "Completed" if state.has_nvswitches(hardware) else "N/A"
        return host

    return make
