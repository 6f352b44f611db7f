"""One simulated site for a test: an inventory of its own, a fleet of its own, and the installed command, used as a user does."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Variables of hosts that serve the lab's tiny model.
TINY = """\
hardware_profile: 8xh20-96
weights_repo: provision-lab/tiny-deepseek-v3
serving_env_build: cpu
swap_path: /data/swapfile
swap_size: 64M
vllm_served_model_name: tiny
"""


@dataclass
class Run:
    """One call of the command."""

    argv: list[str]
    code: int
    out: str
    err: str
    seconds: float

    def __str__(self) -> str:
        return f"$ {' '.join(self.argv)}\nexit {self.code} after {self.seconds:.1f} s\n{self.out[-6000:]}\n{self.err[-6000:]}"

    @property
    def text(self) -> str:
        return self.out + self.err

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    def changes(self) -> dict[str, list[str]]:
        """What changed (or would), by host: "stage: sentence"; only tasks that report a change count."""
        found: dict[str, list[str]] = {}
        for event in self.events:
            if event["type"] == "task_finished" and event["status"] == "changed":
                sentences = event.get("actions") or [event["task"]]
                found.setdefault(event["host"], []).extend(f"{event['stage']}: {sentence}" for sentence in sentences)
        return found


@dataclass
class Prediction:
    """What check mode said of two bare hosts, and what it did to them, which must be nothing."""

    run: Run
    done: dict[str, dict[str, Any]]


@dataclass
class Site:
    """An inventory in a directory of its own, and the fleet that stands for it."""

    command: Path
    directory: Path
    state: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *argv: str | Path, code: int | None = 0, timeout: float = 1500) -> Run:
        """Call `provision` with the arguments; `code` is the exit code that it must end with (None: any)."""
        start = time.monotonic()
        with self.begin(*argv) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        run = Run(process.args, process.returncode, out, err, time.monotonic() - start)
        assert code is None or run.code == code, str(run)
        assert "Traceback (most recent call last)" not in run.text, str(run)
        return run

    def begin(self, *argv: str | Path) -> subprocess.Popen[str]:
        """Start `provision` with the arguments and return at once; its output is to be read from the process."""
        words = [str(self.command), *map(str, argv)]
        env = os.environ | {"XDG_STATE_HOME": str(self.state), "NO_COLOR": "1"} | self.environment
        pipe = subprocess.PIPE
        return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=env, cwd=self.directory.parent)

    def bootstrap(self, *options: str, code: int | None = 0) -> Run:
        return self.run("bootstrap", self.directory, "--json", *options, code=code)

    def foretold(self, *options: str) -> Run:
        """A bootstrap that does what check mode said just before."""
        predicted = self.bootstrap("--check", *options, code=2)
        run = self.bootstrap(*options)
        assert predicted.changes() == run.changes()
        return run

    def up(self) -> Run:
        return self.run("lab", "up", self.directory)

    def down(self) -> Run:
        return self.run("lab", "down", self.directory)

    def sh(self, host: str, script: str, check: bool = True) -> str:
        """Run a shell script on a host as root, through a login with verified host key; its standard output."""
        run = self.run("lab", "ssh", self.directory, host, "--", "sudo", "bash", "-c", _quoted(script), code=None)
        assert not check or run.code == 0, str(run)
        return run.out

    def inside(self, host: str, script: str) -> str:
        """Run a shell script on a host as root without logging in, for when the login is what a test breaks."""
        (pid_file,) = self.state.glob(f"provision/lab/*/hosts/{host}/leader")
        enter = ["nsenter", "--target", pid_file.read_text().strip(), "--all"]
        return subprocess.run([*enter, "bash", "-c", script], capture_output=True, text=True, check=True).stdout

    def variables(self, file: str, text: str) -> None:
        """Add a file to the inventory, or replace one."""
        path = self.directory / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def break_(self, host: str, fault: str) -> Run:
        run = self.run("lab", "break", self.directory, host, fault)
        if fault == "sshd-gone":
            self.inside(host, "pkill sshd || true")  # the connections that earlier commands keep outlive the daemon
        return run

    def mend(self, host: str, fault: str) -> Run:
        return self.run("lab", "mend", self.directory, host, fault)


def _quoted(script: str) -> str:
    """One word for the shell at the other end of ssh."""
    return "'" + script.replace("'", "'\"'\"'") + "'"


def wait_until(what: str, true: Any, seconds: float = 120) -> None:
    """Poll until `true()` is, or fail saying what did not come about."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(1)
