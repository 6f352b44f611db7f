"""What the controller makes of an answer, and the program as a host runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from provision.preflight.bundle import program
from provision.preflight.host.main import look
from provision.preflight.request import request_of
from provision.preflight.survey import look_at, sight
from provision.ssh import Answer
from provision.ssh.trouble import Trouble


def test_facts_and_what_is_certain_of_the_clock(fleet, document) -> None:
    told = document("h20", begin=1010.0, end=1012.0)
    seen = sight(Answer(fleet.hosts["n1"], json.dumps(told)), fleet.replicas[0], 1000.0, 1003.0)
    assert seen.facts is not None
    assert seen.facts.nvidia.loaded == "580.126.20"
    assert seen.ahead == (9.0, 10.0)


def test_an_answer_that_is_none(fleet) -> None:
    for text in ("", "{", "{}", "Killed", '{"begin": 1, "end": "x"}'):
        answer = Answer(fleet.hosts["n1"], text, code=137, error="out of memory")
        seen = sight(answer, fleet.replicas[0], 0, 1)
        assert seen.trouble is not None
        assert "ended with 137 and said: out of memory" in seen.trouble.message


def test_trouble_is_passed_on(fleet) -> None:
    gone = Trouble("timeout", "No.", "Is it up?", unreachable=True)
    assert sight(Answer(fleet.hosts["n1"], trouble=gone), fleet.replicas[0], 0, 1).trouble == gone


def test_hosts_are_asked_on_standard_input(fleet, document, monkeypatch) -> None:
    asked = []

    def call(calls, *, timeout):
        asked.extend(calls)
        return [Answer(calls[0].host, json.dumps(document("h20")))]

    monkeypatch.setattr("provision.preflight.survey.call", call)
    found = look_at(fleet, [fleet.hosts["n2"], fleet.hosts["n1"]])
    assert [seen.host.name for seen in found] == ["n2", "n1"]
    assert {one.script for one in asked} == {"exec python3 -I -S -"}
    assert all("10002" in one.text for one in asked)


def test_the_program_runs_by_itself_and_writes_nothing(fleet, tmp_path) -> None:
    request = request_of(fleet.hosts["n1"], fleet.replicas[0])
    request["reach"]["endpoints"] = [{"use": "path", "named": "here", "url": str(tmp_path / "none")}]
    request["reach"]["apt_sources"] = {"debian": "", "x": ""}
    text = program(json.dumps(request)).replace('"/etc/apt"', f'"{tmp_path}"')
    before = sorted(tmp_path.iterdir())
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-"], input=text, capture_output=True, text=True, timeout=100, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    seen = sight(Answer(fleet.hosts["n1"], done.stdout), fleet.replicas[0], told["begin"], told["end"])
    assert seen.facts is not None
    assert seen.facts.base.system["machine"] == "x86_64"
    assert sorted(tmp_path.iterdir()) == before


def test_one_section_that_fails_hides_no_other(monkeypatch) -> None:
    def fail(_asked):
        raise OSError("no such thing")

    def hang(_asked):
        time.sleep(30)

    sections = {"a": lambda _asked: 1, "b": fail, "c": hang}
    monkeypatch.setattr("provision.preflight.host.main.SECTIONS", sections)
    assert look({}, 0.2) == ({"a": 1}, {"b": "OSError: no such thing", "c": "it took more than 0 s"})
