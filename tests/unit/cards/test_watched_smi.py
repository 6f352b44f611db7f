"""What stands in front of nvidia-smi while real cards are looked at: questions pass, nothing else does."""

import json
import os
import subprocess
from pathlib import Path

import pytest

WATCHED = Path(__file__).parents[2] / "cards/stand_in/nvidia-smi"


@pytest.fixture
def ask(tmp_path):
    real = tmp_path / "real"
    real.write_text('#!/bin/sh\necho "$@" >> "$0.asked"\necho answer\nexit 3\n')
    real.chmod(0o755)

    def run(line):
        environment = {**os.environ, "LOOK_SMI": str(real), "LOOK_QUERIES": str(tmp_path / "queries")}
        done = subprocess.run([WATCHED, *line.split()], env=environment, capture_output=True, text=True, check=False)
        kept = [json.loads(each) for each in (tmp_path / "queries").read_text().splitlines()]
        return done, kept[-1], Path(f"{real}.asked")

    return run


@pytest.mark.parametrize(
    "line",
    ["", "-q", "-q -x -i 0,1", "--query-gpu=index --format=csv,noheader,nounits", "nvlink --status", "topo -m", "-L"],
)
def test_questions_pass_and_are_kept(ask, line):
    done, kept, asked = ask(line)
    assert (done.returncode, done.stdout, asked.read_text().strip()) == (3, "answer\n", line)
    assert kept == {"argv": line.split(), "rc": 3, "out": "answer\n", "err": ""}


@pytest.mark.parametrize(
    "line",
    ["-pm 1", "-i 0,1 -lgc 1830,1830", "-rac", "-e 0", "-mig 1", "-r", "--gpu-reset -i 0", "-q -pl 200", "topo --set"],
)
def test_what_would_change_a_card_does_not_reach_it(ask, line):
    done, kept, asked = ask(line)
    assert done.returncode == kept["rc"] == 90
    assert "cards are only read" in done.stderr
    assert not asked.exists()
