"""Which stages a commit touched: those are what a bounded run looks at."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SHARED = re.compile(r"roles/host/module_utils/|playbooks/(bootstrap|callbacks)|provision/(converge|drift|stack)/")


def stages_of(paths: Iterable[str]) -> set[str] | None:
    """The stages whose roles or playbooks are among these files; None where what they share is, too."""
    found = set()
    for path in paths:
        if SHARED.match(path):
            return None
        match = re.match(r"roles/([^/]+)/|playbooks/stages/([^/]+)\.yml", path)
        if match:
            found.add(match[1] or match[2])
    return found


def changed_stages() -> set[str] | None:
    """The stages touched since the commit before this one, uncommitted work included; None for all or where git cannot tell."""
    asked = subprocess.run(
        ["git", "diff", "--name-only", "HEAD~1"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    return (stages_of(asked.stdout.splitlines()) or None) if asked.returncode == 0 else None
