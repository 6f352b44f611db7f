#!/usr/bin/python3
"""Runs before each start of vLLM, and waits the longer, the more starts in a row came to nothing.

systemd itself waits for the same time before every start, or (`RestartSteps`, from 254) for longer after each restart
since the unit was last started by hand, however long it ran well in between. Here a start in vain is one whose engine
ended within ten minutes; and `systemctl restart`, by hand or by `provision`, waits for nothing.

Standard library only, Python 3.9 and later.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

FIRST_S, LONGEST_S = 10, 120  # the unit's own RestartSec is the first
LASTS_S = 600  # an engine that was started longer ago was not started in vain


class Start(NamedTuple):
    """What is remembered of a start, in a file that goes with the host's boot."""

    restarts: int  # systemd's count, which it begins anew when somebody else starts the unit
    in_vain: int  # starts in a row before this one
    at: float  # seconds of the monotonic clock


def following(last: Start | None, restarts: int, now: float) -> Start:
    """The start that begins now, after the last one."""
    by_systemd = restarts > (last.restarts if last else 0)
    in_vain = (last.in_vain if last else 0) + 1 if by_systemd and not (last and now - last.at > LASTS_S) else 0
    return Start(restarts, in_vain, now)


def pause_s(start: Start) -> int:
    """Seconds to wait beyond the pause that systemd has made already."""
    return min(FIRST_S << max(start.in_vain - 1, 0), LONGEST_S) - FIRST_S


def remembered(state: Path) -> Start | None:
    """The last start; None if none is, as after a boot."""
    try:
        restarts, in_vain, at = json.loads(state.read_text())
        return Start(int(restarts), int(in_vain), float(at))
    except (OSError, ValueError, TypeError):
        return None


def restarts_of(unit: str) -> int:
    """How often systemd started the unit again since somebody else did."""
    show = ["systemctl", "show", "--property=NRestarts", "--value", unit]
    return int(subprocess.run(show, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("unit")
    parser.add_argument("--state", type=Path, default=Path("/run/provision/vllm.starts"))
    words = parser.parse_args()
    start = following(remembered(words.state), restarts_of(words.unit), time.monotonic())
    pause = pause_s(start)
    if pause:
        print(f"Ended soon after each of its last {start.in_vain} starts. The next one is in {pause} s.", flush=True)
        time.sleep(pause)
    words.state.parent.mkdir(exist_ok=True)
    words.state.write_text(json.dumps(start._replace(at=time.monotonic())))


if __name__ == "__main__":
    main()
