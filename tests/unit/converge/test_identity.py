from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from provision.converge.identity import Holder, clock, holder, identify

SAY = "from provision.converge.identity import identify; print(identify().origin)"


def test_this_process_lives_and_others_of_its_number_do_not():
    mine = identify()
    assert mine.lives
    assert not replace(mine, process_started=mine.process_started - 1).lives
    assert not replace(mine, boot_id="another").lives
    assert not replace(mine, controller="another").lives


def test_a_process_that_has_ended_and_was_not_waited_for_lives_no_more():
    program = "from provision.converge.identity import identify; print(identify().process_started, flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True) as process:
        theirs = replace(identify(), pid=process.pid, process_started=int(process.stdout.readline()))
        assert theirs.lives
        process.stdin.write("\n")
        process.stdin.flush()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not theirs.lives


def test_sudo_hides_where_the_user_came_from_and_a_parent_still_knows():
    script = f"""env -u SSH_CONNECTION {sys.executable} -c '{SAY}'; true"""
    env = os.environ | {"SSH_CONNECTION": "10.0.0.5 50000 10.0.0.1 22"}
    done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "10.0.0.5\n"


def test_what_a_holder_writes_it_reads():
    mine = Holder("run-1", identify(), "2026-11-22T06:00:00Z", "provision bootstrap x")
    assert holder(mine.text()) == mine
    assert str(replace(mine, who=replace(mine.who, user="a", controller="c", pid=7, origin=""))).startswith(
        "run run-1 of a@c (process 7), since "
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"run": "x"}', '{"run": "x", "since": "", "pid": "no"}'])
def test_what_is_no_holder(text):
    assert holder(text) is None


def test_times_of_today_are_short():
    now = datetime.now(UTC)
    assert len(clock(now.isoformat())) == len("06:15:00")
    assert clock(now.replace(year=2020, day=1).isoformat()).startswith("2020-")
    assert clock("nonsense") == "nonsense"
