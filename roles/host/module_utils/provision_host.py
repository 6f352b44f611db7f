"""What this project's modules share: a change, a converging run, commands, and files written whole.

A module reads the true state and yields a `Change` for each thing that differs; `converge` performs them, or in check
mode only tells them. The plan is a generator, so that in apply mode each next reading sees what the last change did.
Standard library only; runs on the hosts' own Python, 3.9 and later.
"""

from __future__ import annotations

import contextlib
import fcntl
import grp
import hashlib
import os
import pwd
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Mapping, Sequence

LOCK_PATH = "/run/provision/lock"
LOCK_WAIT_S = 600


class HostError(Exception):
    """Says what is, what was expected, and the next step, as sentences for a person."""


@dataclass
class Change:
    """One thing that differs: a sentence in the past tense, how to bring it about, and before/after for the diff.

    Changes with an empty `header` add a sentence but no diff entry (a step of a resource that is shown already).
    """

    action: str
    act: Callable[[], Any]
    header: str = ""
    before: str = ""
    after: str = ""


@dataclass
class Outcome:
    """What a converging run has done so far, in the shape in which modules return it."""

    actions: list[str] = field(default_factory=list)
    diff: list[dict[str, str]] = field(default_factory=list)

    def add(self, change: Change) -> None:
        self.actions.append(change.action)
        if change.header:
            headers = {"before_header": change.header, "after_header": change.header}
            self.diff.append({**headers, "before": change.before, "after": change.after})


def converge(module: Any, plan: Callable[[], Iterable[Change]], facts: Callable[[], dict[str, Any]] = dict) -> None:
    """Perform the plan (or tell it, in check mode) and end the module; `facts()` adds keys to the result."""
    outcome = Outcome()
    try:
        with contextlib.nullcontext() if module.check_mode else host_lock():
            for change in plan():
                if not module.check_mode:
                    change.act()
                outcome.add(change)
        result = facts()
    except HostError as error:
        module.fail_json(msg=str(error), changed=bool(outcome.actions), actions=outcome.actions, diff=outcome.diff)
    except OSError as error:
        module.fail_json(msg=f"The operating system refused: {error}.", actions=outcome.actions, diff=outcome.diff)
    module.exit_json(changed=bool(outcome.actions), actions=outcome.actions, diff=outcome.diff, **result)


@contextlib.contextmanager
def host_lock(path: str = LOCK_PATH, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
    """Hold the host while it is changed: the task of a killed controller runs on, and must end before the next."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with open(path, "a+", encoding="ascii") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    lock.seek(0)
                    raise HostError(
                        f"Process {lock.read().strip() or 'unknown'} of an earlier run has been changing this host for "
                        f"more than {wait_s:.0f} s. Look at it with ps on the host; run again when it has ended."
                    ) from None
                time.sleep(0.2)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


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


def read_text(path: str) -> str | None:
    """The text of a file, None if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return None


def write_file(path: str, text: str, mode: int = 0o644, owner: str = "root", group: str = "root") -> None:
    """Put a whole file in place: written beside it with its final mode and owner, synced, renamed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as handle:
            handle.write(text)
            handle.flush()
            if os.geteuid() == 0:
                os.fchown(handle.fileno(), pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
            os.fchmod(handle.fileno(), mode)
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(str(target.parent))


def remove_file(path: str) -> None:
    """Remove a file for good; one that is not there is fine."""
    Path(path).unlink(missing_ok=True)
    if Path(path).parent.is_dir():
        sync_directory(str(Path(path).parent))


def sync_directory(path: str) -> None:
    """Make the names in a directory durable: a rename survives a power cut only after this."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_change(path: str, text: str, action: str = "", mode: int = 0o644) -> Iterator[Change]:
    """The change, if one is needed, that gives a root-owned file this text and mode."""
    before = read_text(path)
    if before != text:
        sentence = action or f"{'Wrote' if before is None else 'Rewrote'} {path}."
        yield Change(sentence, lambda: write_file(path, text, mode), path, before or "", text)
    elif Path(path).stat().st_mode & 0o7777 != mode:
        is_mode = Path(path).stat().st_mode & 0o7777
        yield Change(
            f"Set the mode of {path} to {mode:04o}.",
            lambda: os.chmod(path, mode),
            path,
            f"mode: {is_mode:04o}\n",
            f"mode: {mode:04o}\n",
        )


def absent_change(path: str) -> Iterator[Change]:
    """The change, if one is needed, that removes a file."""
    before = read_text(path)
    if before is not None:
        yield Change(f"Removed {path}.", lambda: remove_file(path), path, before, "")


def sha256_text(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes, in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
