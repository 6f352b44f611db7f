"""Asking the hosts of a fleet about their weights, all at once, in one SSH round trip each."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from provision.inventory.model import Host
from provision.ssh.call import Answer, Call, call
from provision.ssh.fit import python_of
from provision.ssh.trouble import Trouble

PROGRAM = "/opt/provision/weights"  # where the role weights lays it down
SETTINGS = ("weights_repo", "weights_revision", "weights_dir")
ANSWER_S = 60
READ_S = 6 * 3600  # to read a terabyte again from a slow disk
SCRIPT = """\
if [ ! -f {program}/provision_weights/keep.py ]; then echo '{{"missing": true}}'; exit 0; fi
cd / && PYTHONPATH={program} PYTHONDONTWRITEBYTECODE=1 exec {python} -s -m provision_weights --asked {asked} {command}
"""


@dataclass(frozen=True)
class Told:
    """What one host answered; or why it answered nothing that can be used."""

    host: Host
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    trouble: Trouble | None = None

    @property
    def is_gone(self) -> bool:
        """Whether the host does not answer."""
        return bool(self.trouble and self.trouble.unreachable)

    @property
    def why(self) -> str:
        """What went wrong, in a sentence; empty for nothing."""
        return self.trouble.message if self.trouble else self.error


def commit_of(host: Host) -> str:
    """The commit that the inventory asks for; empty for a branch or tag, whose commit the hosts know."""
    revision = str(host.setting("weights_revision") or "")
    return revision if re.fullmatch("[0-9a-f]{40}", revision) else ""


def ask(
    hosts: Sequence[Host], command: str, commit: str = "", timeout: float = ANSWER_S, keep: Sequence[str] = ()
) -> list[Told]:
    """Run a command of the host's program everywhere, about the model that the inventory names there.

    `keep` are commits that other hosts need.
    """
    return [_told(answer) for answer in call([_call(host, command, commit, keep) for host in hosts], timeout=timeout)]


def _call(host: Host, command: str, commit: str, keep: Sequence[str]) -> Call:
    asked: dict[str, object] = {
        "repo": str(host.setting("weights_repo") or ""),
        "directory": str(host.setting("weights_dir") or ""),
        "keep": sorted(keep),
    }
    if wanted := commit or commit_of(host):
        asked["commit"] = wanted
    words = {"python": python_of(host), "asked": json.dumps(asked), "command": command, "program": PROGRAM}
    return Call(host, SCRIPT.format(**{name: shlex.quote(word) for name, word in words.items()}))


def _told(answer: Answer) -> Told:
    if answer.trouble:
        return Told(answer.host, trouble=answer.trouble)
    try:
        facts = json.loads(answer.text)
    except ValueError:
        return Told(answer.host, error=answer.error or f"the program ended with {answer.code} and said nothing")
    if facts.get("missing"):
        return Told(answer.host, error="it was never prepared for weights: run  provision bootstrap  first")
    return Told(answer.host, facts)
