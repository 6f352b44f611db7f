"""The verifier as a host runs it: its own text, fed to a Python, with receipts of the test's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest

from provision.content import content_root
from provision.drift.bundle import verifier_text

# What the host's code imports from the roles, where it is tested without the bundle.
ansible.module_utils.__path__.append(str(content_root() / "roles/host/module_utils"))


class Verifier:
    """Runs the verifier's text on receipts in a directory."""

    def __init__(self, directory: Path, run_directory: Path) -> None:
        self.run_directory, self.receipts = run_directory, directory / "receipts"
        self.receipts.mkdir()

    def seal(self, stage: str, *steps: tuple[str, dict[str, Any], dict[str, Any]], **more: Any) -> Path:
        listed = [{"module": module, "params": params, "facts": facts} for module, params, facts in steps]
        receipt = {"format": 1, "stage": stage, "inputs": {"code": "0123"}, "steps": listed, **more}
        path = self.receipts / f"{stage}.json"
        path.write_text(json.dumps(receipt))
        return path

    def call(self, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
        argv = [python, "-I", "-S", "-", "--receipts", str(self.receipts), *arguments]
        text = verifier_text(str(self.run_directory))
        return subprocess.run(argv, input=text, capture_output=True, text=True, timeout=120, check=False)

    def mend(self, stage: str) -> dict[str, Any]:
        done = self.call("--mend", stage, "--lock", str(self.receipts / "lock"))
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def stages(self, *arguments: str) -> dict[str, Any]:
        done = self.call(*arguments)
        assert done.returncode == 0, done.stderr
        stages: dict[str, Any] = json.loads(done.stdout)["stages"]
        return stages


@pytest.fixture(scope="session")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the verifier unpacks itself once for all tests."""
    return tmp_path_factory.mktemp("verifier")


@pytest.fixture
def verifier(tmp_path: Path, unpacked: Path) -> Verifier:
    return Verifier(tmp_path, unpacked)


@pytest.fixture
def fresh(tmp_path: Path) -> Verifier:
    """One that was never unpacked."""
    return Verifier(tmp_path, tmp_path / "run")


@pytest.fixture
def text_file(tmp_path: Path) -> Callable[..., tuple[str, dict[str, Any], dict[str, Any]]]:
    """A step that wants a file with a text."""

    def step(
        name: str = "file", content: str = "hello\n", mode: str = "0644"
    ) -> tuple[str, dict[str, Any], dict[str, Any]]:
        file = {"path": str(tmp_path / name), "content": content, "mode": mode}
        return "text_files", {"files": [file]}, {}

    return step
