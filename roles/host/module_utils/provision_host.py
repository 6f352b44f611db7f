"""What this project's modules share: a change, a converging run, commands, and files written whole.

A module reads the true state and yields a `Change` for each thing that differs; `converge` performs them, or in check
mode only tells them. The plan is a generator, so that in apply mode each next reading sees what the last change did.
Standard library only; runs on the hosts' own Python, 3.9 and later.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

from ansible.module_utils.provision_files import (
    WORK,
    clear_work,
    read_text,
    remove_file,
    sha256_text,
    sync_directory,
    write_file,
)
from ansible.module_utils.provision_receipt import record_step

__all__ = [  # what nearly every module needs, from one place
    "Change",
    "HostError",
    "absent_change",
    "access_changes",
    "at_work",
    "converge",
    "file_change",
    "host_lock",
    "lock_holder",
    "read_text",
    "remove_file",
    "run",
    "sha256_text",
    "sync_directory",
    "write_file",
]

LOCK_PATH = "/run/provision/lock"
LOCK_WAIT_S = 600
TRANSIENT = "/run/systemd/transient"  # where systemd keeps the units of systemd-run while they run
_held: list[int] = []  # the lock, while it is ours: the programs that we start share it


class HostError(Exception):
    """Says what is, what was expected, and the next step, as sentences for a person."""


@dataclass
class Change:
    """One thing that differs: a sentence in the past tense, how to bring it about, and before/after for the diff.

    Changes with an empty `header` add a sentence but no diff entry (a step of a resource that is shown already).
    `effect` is what it does to what runs: "none", "reload" (systemd reads its units again), "restart" (a unit stops),
    "reboot", or "gpu_reset" (it waits for a reset of the GPU).
    """

    action: str
    act: Callable[[], Any]
    header: str = ""
    before: str = ""
    after: str = ""
    effect: str = "none"


@dataclass
class Outcome:
    """What a converging run has done so far, in the shape in which modules return it."""

    actions: list[str] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)

    def add(self, change: Change) -> None:
        self.actions.append(change.action)
        self.effects.append(change.effect)
        if change.header:
            headers = {"before_header": change.header, "after_header": change.header}
            self.diff.append({**headers, "before": change.before, "after": change.after})

    def told(self) -> dict[str, Any]:
        """The keys that every module returns."""
        done = {"actions": self.actions, "effects": self.effects, "diff": self.diff}
        return {"changed": bool(self.actions), **done}


def converge(
    module: Any,
    plan: Callable[[], Iterable[Change]],
    facts: Callable[[], dict[str, Any]] = dict,
    forget: Iterable[str] = (),
) -> None:
    """Perform the plan (or tell it, in check mode) and end the module; `facts()` adds keys to the result.

    What was brought about is noted for the stage's receipt, without the parameters in `forget`.
    """
    outcome = Outcome()
    try:
        with contextlib.nullcontext() if module.check_mode else host_lock(f"module {module._name}"):
            for change in plan():
                if not module.check_mode:
                    change.act()
                outcome.add(change)
            result = facts()
            record_step(module, result, forget)
    except HostError as error:
        module.fail_json(msg=str(error), **outcome.told())
    except OSError as error:
        module.fail_json(msg=f"The operating system refused: {error}.", **outcome.told())
    module.exit_json(**outcome.told(), **result)


@contextlib.contextmanager
def host_lock(what: str = "", path: str = LOCK_PATH, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the host while it is changed: the task of a killed controller runs on, and must end before the next.

    Waits that long; and longer for long work, which ends by itself. What a module starts holds the lock with it: a
    program that outlives its module, which was killed, must end before the next, too.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with open(path, "a+", encoding="utf-8") as lock:
        while not _locked(lock):
            if time.monotonic() > deadline and not at_work():
                holder = lock_holder(path) or {"pid": 0, "command": "which has ended", "since": "just now"}
                raise HostError(
                    f"Process {holder['pid']} ({holder['command']}) has been changing this host since "
                    f"{holder['since']}; this run has waited {wait_s:.0f} s for it. Look at it on the host with: "
                    f"ps -fp {holder['pid']}; run again when it has ended."
                )
            time.sleep(0.2)
        told = [Path("/proc/self/cmdline").read_text(errors="replace").replace("\0", " ").strip(), what]
        told += [f"run {os.environ['PROVISION_RUN']}"] if os.environ.get("PROVISION_RUN") else []
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        lock.truncate(0)
        json.dump({"pid": os.getpid(), "command": ", ".join(filter(None, told)), "since": since}, lock)
        lock.flush()
        clear_work(str(Path(path).parent / WORK))
        _held.append(lock.fileno())
        try:
            yield
        finally:
            _held.clear()


def _locked(lock: Any) -> bool:
    """Whether the lock is ours now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_holder(path: str = LOCK_PATH) -> dict[str, Any] | None:
    """Who changes this host now: `pid`, `command` and `since`; None for nobody, since a lock ends with its process."""
    try:
        with open(path, encoding="utf-8", errors="replace") as lock:
            if _locked(lock):
                return None
            text = lock.read()
    except FileNotFoundError:
        return None
    with contextlib.suppress(ValueError):
        return dict(json.loads(text))
    return {"pid": 0, "command": "unknown", "since": "just now"}  # it is about to write who it is


def at_work() -> list[str]:
    """The named units in which long work of this project goes on, whoever asked for it."""
    return sorted(path.name for path in Path(TRANSIENT).glob("provision-*.service"))


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    rc: int
    out: str
    err: str


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    timeout_s: float | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
) -> Ran:
    """Run a program under LC_ALL=C; with `check`, an end other than 0 is a HostError that quotes its last lines.

    A program that is not installed ends with 127, as in a shell.
    """
    environment = {**os.environ, **(env or {}), "LC_ALL": "C", "LANGUAGE": "C"}
    try:
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            env=environment,
            pass_fds=_held,
            check=False,
        )
        ran = Ran(done.returncode, done.stdout, done.stderr)
    except FileNotFoundError:
        ran = Ran(127, "", f"{argv[0]} is not installed")
    except subprocess.TimeoutExpired:
        ran = Ran(124, "", f"it did not end within {timeout_s:.0f} s")
    if check and ran.rc != 0:
        last = "\n".join((ran.err.strip() or ran.out.strip()).splitlines()[-10:])
        raise HostError(f"{' '.join(argv)} ended with {ran.rc}: {last}")
    return ran


def expect_file(path: str) -> os.stat_result | None:
    """What stands at a path that is to hold a file; None for nothing, a HostError for what a file cannot replace."""
    try:
        seen = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not (stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode)):
        raise HostError(f"{path} should be a file, and is something else. Move it away and run again.")
    return seen


def file_change(path: str, text: str, action: str = "", mode: int = 0o644, effect: str = "none") -> Iterator[Change]:
    """The changes, if any are needed, that make a path a file of root's with this text and mode."""
    seen = expect_file(path)
    if seen is None or not stat.S_ISREG(seen.st_mode):
        before = f"a link to {os.readlink(path)}\n" if seen else ""
        verb = f"Put a file in the place of the link {path}." if seen else action or f"Wrote {path}."
        yield Change(verb, lambda: write_file(path, text, mode), path, before, text, effect)
        return
    there = read_text(path)
    if there != text:
        sentence = action or f"Rewrote {path}."
        yield Change(sentence, lambda: write_file(path, text, mode), path, there or "", text, effect)
    else:
        yield from access_changes(path, mode)


def access_changes(path: str, mode: int) -> Iterator[Change]:
    """The changes, if any are needed, that give a file back to root, and its mode."""
    seen = os.lstat(path)
    owner, ours = (seen.st_uid, seen.st_gid), (os.geteuid(), os.getegid())
    if owner != ours:
        before, after = (f"owner: {uid}:{gid}\n" for uid, gid in (owner, ours))
        yield Change(f"Gave {path} back to root.", lambda: os.chown(path, *ours), path, before, after)
    if stat.S_IMODE(seen.st_mode) != mode:
        before, after = (f"mode: {number:04o}\n" for number in (stat.S_IMODE(seen.st_mode), mode))
        yield Change(f"Set the mode of {path} to {mode:04o}.", lambda: os.chmod(path, mode), path, before, after)


def absent_change(path: str) -> Iterator[Change]:
    """The change, if one is needed, that removes a file."""
    seen = expect_file(path)
    if seen:
        before = f"a link to {os.readlink(path)}\n" if stat.S_ISLNK(seen.st_mode) else read_text(path) or ""
        yield Change(f"Removed {path}.", lambda: remove_file(path), path, before, "")
