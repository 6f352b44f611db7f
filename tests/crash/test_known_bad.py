"""The suite must be able to fail: a playbook that restarts by a handler is convicted, its sound twin is not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from sweep import Ran, Verdict, crash, reference

PLAYBOOKS = Path(__file__).parent / "known_bad"


class LocalPlaybook:
    """A playbook against a directory of this machine."""

    def __init__(self, playbook: str, scratch: Path) -> None:
        self.playbook, self.folder = PLAYBOOKS / playbook, scratch / "state"

    def reset(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def run(self, environment: dict[str, str]) -> Ran:
        ansible = Path(sys.executable).parent / "ansible-playbook"
        settings = {
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
            "ANSIBLE_LOCALHOST_WARNING": "False",
            "ANSIBLE_NOCOLOR": "1",
        }
        argv = [
            ansible,
            "-i",
            "localhost,",
            "-e",
            json.dumps({"folder": str(self.folder), "ansible_python_interpreter": sys.executable}),
        ]
        done = subprocess.run(
            [*argv, self.playbook],
            env=os.environ | settings | environment,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,  # a kill of the parent must not be one of the tests
        )
        changed = [line for line in done.stdout.splitlines() if line.startswith("changed: ")]
        return Ran(done.returncode, changed, [], done.stdout + done.stderr)

    def state(self) -> dict[str, dict[str, str]]:
        paths = sorted(self.folder.rglob("*"))
        return {
            "files": {path.name: path.read_text() if path.is_file() else oct(path.stat().st_mode) for path in paths}
        }


def convict(playbook: str, scratch: Path) -> list[Verdict]:
    subject = LocalPlaybook(playbook, scratch)
    wanted = reference(subject, scratch, who=("ansible",))
    return [crash(subject, wanted.state, point, scratch) for point in wanted.points if point.kind == "start"]


def test_a_restart_by_handler_is_convicted(tmp_path: Path) -> None:
    diverged = [verdict for verdict in convict("handler.yml", tmp_path) if verdict.problems]
    assert diverged, "the suite saw nothing wrong with a playbook that is wrong: it can prove nothing"
    assert all("running" in problem for verdict in diverged for problem in verdict.problems)


def test_its_sound_twin_is_not(tmp_path: Path) -> None:
    verdicts = convict("observed.yml", tmp_path)
    assert [verdict for verdict in verdicts if verdict.problems] == []
    assert [verdict.task for verdict in verdicts] == [
        "observed: Write the configuration",
        "observed: Make a directory for its data",
        "observed: Compare what runs with what is configured",
        "observed: Restart the service",
    ]
