"""Calling the programs of the machine."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence

from provision.errors import LabError


def call(argv: Sequence[str], *, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program of the machine, in English; a failure becomes an error that shows what it said."""
    environment = {**os.environ, "LC_ALL": "C"}
    source = {"input": stdin} if stdin is not None else {"stdin": subprocess.DEVNULL}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment, **source)
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing was printed")[-2000:]
        raise LabError(f"`{_shown(argv)}` ended with status {done.returncode}: {said}")
    return done


def _shown(argv: Sequence[str]) -> str:
    """The command as a person would type it: without what only says in which control group it runs."""
    return shlex.join(argv[argv.index("--") + 1 :] if argv[:2] == ["sh", "-c"] else argv)
