"""The one place that knows ansible-runner: runs the playbook, hands on events and text, stops it when told to."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import ansible_runner

from provision.content import content_root
from provision.converge.environment import environment


@dataclass(frozen=True)
class Playbook:
    """What to run: `hosts` by name, `variables` files of extra variables, the last one wins."""

    path: Path
    sources: Sequence[Path]
    hosts: Sequence[str]
    variables: Sequence[Path]
    check: bool
    forks: int
    verbosity: int


@dataclass(frozen=True)
class Watch:
    """Who follows a playbook: its events, Ansible's own lines, a first signal; and who may end it between two tasks."""

    on_event: Callable[[dict[str, Any]], None]
    on_text: Callable[[str], None]
    on_stop: Callable[[], None] = lambda: None
    must_stop: Callable[[], bool] = lambda: False


class Interrupt:
    """Ctrl-C and SIGTERM while Ansible runs: after the first it finishes the tasks at hand, the second stops it."""

    def __init__(self, stop: Path, watch: Watch) -> None:
        self.asked = 0
        self._stop, self._watch = stop, watch

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """The signal's handler."""
        self.asked += 1

    def must_kill(self) -> bool:
        """Asked by ansible-runner several times a second: True makes it kill Ansible."""
        if (self.asked or self._watch.must_stop()) and not self._stop.exists():
            self._stop.touch()
            if self.asked:
                self._watch.on_stop()
        return self.asked > 1


def run_playbook(playbook: Playbook, scratch: Path, watch: Watch) -> tuple[int, bool]:
    """Run a playbook; `scratch` is made, used for what ansible-runner keeps on disk, and removed.

    Returns Ansible's own exit code, and whether a signal ended the run.
    """
    interrupt = Interrupt(scratch / "stop", watch)

    def handle(event: dict[str, Any]) -> bool:
        if event.get("stdout"):
            watch.on_text(str(event["stdout"]))
        watch.on_event(event)
        return False  # ansible-runner need not keep a copy of the event

    _prepare(scratch, playbook.hosts)
    try:
        with _swallowed(scratch / "artifacts/run/command"), _handled(interrupt):
            runner = ansible_runner.run(
                **_settings(playbook, scratch), event_handler=handle, cancel_callback=interrupt.must_kill
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return int(runner.rc if runner.rc is not None else 1), interrupt.asked > 0


def _prepare(scratch: Path, hosts: Sequence[str]) -> None:
    scratch.mkdir(mode=0o700)
    (scratch / "env").mkdir()
    # Given as an argument these would be dropped together with suppress_env_files.
    (scratch / "env/settings").write_text(json.dumps({"pexpect_timeout": 0.2, "suppress_output_file": True}))
    (scratch / "hosts").write_text("\n".join(hosts) + "\n")


def _settings(playbook: Playbook, scratch: Path) -> dict[str, object]:
    root = content_root()
    return {
        "private_data_dir": str(scratch),
        "ident": "run",
        "playbook": str(playbook.path),
        "inventory": [str(path) for path in playbook.sources],
        "limit": f"@{scratch / 'hosts'}",
        "cmdline": _arguments(playbook),
        "envvars": {**environment(root), "PROVISION_STOP": str(scratch / "stop")},
        "suppress_env_files": True,
        "quiet": True,
    }


def _arguments(playbook: Playbook) -> str:
    arguments = ["--forks", str(playbook.forks)]
    arguments += [word for path in playbook.variables for word in ("-e", f"@{path}")]
    arguments += ["--check"] if playbook.check else []
    # Differences are always asked for: the summary is made of them. Whether they are shown in full is the caller's.
    arguments += ["--diff"]
    arguments += ["-" + "v" * playbook.verbosity] if playbook.verbosity else []
    return shlex.join(arguments)


@contextmanager
def _swallowed(path: Path) -> Iterator[None]:
    """ansible-runner writes its whole environment, tokens and all, to this file: a pipe that nobody keeps takes it."""
    path.parent.mkdir(parents=True, mode=0o700)
    os.mkfifo(path, 0o600)
    reader = threading.Thread(target=path.read_bytes, daemon=True)
    reader.start()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _handled(interrupt: Interrupt) -> Iterator[None]:
    """Signals go to `interrupt` meanwhile; in a thread other than the first nothing can be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
