"""Draw docs/images/bootstrap.svg: a first bootstrap of the simulated fleet, a drifted setting, and its repair."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path

from rich.console import Console
from rich.text import Text

CHECKOUT = Path(__file__).resolve().parent.parent
PICTURE = CHECKOUT / "docs/images/bootstrap.svg"
WIDTH = 116
LAB = "inventory/lab"
SCENES = [
    ("bootstrap", LAB),
    ("lab", "ssh", LAB, "node-2", "--", "sudo", "sysctl", "vm.swappiness=60"),
    ("bootstrap", LAB),
    ("status", LAB),
]


def provision(*words: str) -> str:
    """What one call of the command leaves on the screen, colours included: the live display (stderr) wipes itself."""
    env = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(WIDTH)}
    env.pop("NO_COLOR", None)
    argv = [".venv/bin/provision", *words]
    done = subprocess.run(argv, cwd=CHECKOUT, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return done.stdout.decode()


def main() -> None:
    """Run the scenes on a fresh fleet, and draw what they printed."""
    provision("lab", "down", LAB)
    provision("lab", "up", LAB)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    for words in SCENES:
        console.print(Text(f"$ provision {' '.join(words)}", style="bold"))
        console.print(Text.from_ansi(provision(*words)))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    console.save_svg(str(PICTURE), title="provision bootstrap inventory/lab")
    provision("lab", "down", LAB)


if __name__ == "__main__":
    main()
