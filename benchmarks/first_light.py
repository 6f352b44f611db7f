"""Fresh clone to first answer with cold caches, then the second run. The last line printed is one JSON object.

Keys: `clone_to_answer_s` (git clone and `make demo`, which ends with its answer), `second_run_s` (median of three runs
over two converged hosts); `clone_to_answer_over_aim` (÷ 600 s) and `second_run_over_aim` (÷ 30 s): 1 or less is right.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
ANSWER_AIM_S, SECOND_RUN_AIM_S = 600, 30


def timed(*argv: str, cwd: Path, env: dict[str, str]) -> float:
    """Seconds that a command took; ends the benchmark if it failed."""
    print("$", *argv, flush=True)
    start = time.monotonic()
    if subprocess.run(argv, cwd=cwd, env=env, check=False).returncode:
        sys.exit(f"{' '.join(argv)} failed, so there is nothing to report.")
    return time.monotonic() - start


def measure(work: Path) -> dict[str, float]:
    """Run the demo and three more bootstraps in a clone of its own, with caches of its own."""
    env = {
        **os.environ,
        "XDG_CACHE_HOME": f"{work}/cache",
        "XDG_STATE_HOME": f"{work}/state",
        "PIP_CACHE_DIR": f"{work}/pip",
    }
    clone = work / "provision"
    command = ".venv/bin/provision"
    answer = timed("git", "clone", "--quiet", str(CHECKOUT), str(clone), cwd=work, env=env)
    try:
        answer += timed("make", "demo", cwd=clone, env=env)
        again = [timed(command, "bootstrap", "inventory/lab", cwd=clone, env=env) for _ in range(3)]
    finally:
        subprocess.run([command, "lab", "down", "inventory/lab"], cwd=clone, env=env, check=False)
    second = statistics.median(again)
    return {
        "clone_to_answer_s": round(answer, 1),
        "clone_to_answer_over_aim": round(answer / ANSWER_AIM_S, 3),
        "second_run_s": round(second, 1),
        "second_run_over_aim": round(second / SECOND_RUN_AIM_S, 3),
    }


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="first-light-", dir=os.environ.get("TMPDIR")) as work:
        print(json.dumps(measure(Path(work))))


if __name__ == "__main__":
    main()
