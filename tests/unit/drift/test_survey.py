"""What the controller makes of what hosts tell."""

from __future__ import annotations

import json

import pytest

from provision.drift import Busy, Finding, Mended, mend, verify
from provision.drift.host.state import kv_tokens_in
from provision.inventory.model import Host
from provision.ssh import Answer, Call
from provision.ssh.trouble import Trouble

CHANGE = {
    "module": "text_files",
    "action": "Wrote /x.",
    "resource": "/x",
    "before": "",
    "after": "a\n",
    "effect": "none",
}
STAGE = {
    "inputs": {"code": "01"},
    "sealed": "2026-11-22T06:00:00Z",
    "changes": [],
    "facts": [],
    "error": None,
    "seconds": 0.1,
}
DOCUMENT = {
    "format": 1, "boot_id": "b", "python": "3.11.2", "os": "Debian GNU/Linux 12 (bookworm)", "os_id": "debian",
    "os_release": "12", "busy": None, "at_work": [], "serving": True, "kv_tokens": 4096, "stages": {},
    "mended": {},
}  # fmt: skip


def host(name: str, **variables: object) -> Host:
    return Host(name, "10.0.0.1", "ops", None, None, (), variables, ())


@pytest.fixture
def hosts_tell(monkeypatch: pytest.MonkeyPatch):
    """Hosts that answer in turn as given; returns what they were asked."""
    asked: list[Call] = []

    def tell(*answers: object) -> list[Call]:
        def call(calls, *, at_once, timeout, on_answer):
            asked.extend(calls)
            for one, answer in zip(calls, answers, strict=True):
                told = answer if isinstance(answer, dict) else {"text": answer}
                on_answer(Answer(one.host, **told))

        monkeypatch.setattr("provision.drift.survey.call", call)
        return asked

    return tell


def test_what_stands_and_what_does_not(hosts_tell) -> None:
    change = {**CHANGE, "who": "file changed 3 min ago"}
    stages = {
        "host": STAGE,
        "gpu": {**STAGE, "changes": [change]},
        "vllm": {**STAGE, "error": "No."},
        "ray": {**STAGE, "facts": ["x"]},
    }
    hosts_tell(json.dumps({**DOCUMENT, "stages": stages}))
    (told,) = verify([host("a")])
    assert {name: receipt.stands for name, receipt in told.stages.items()} == {
        "host": True, "gpu": False, "vllm": False, "ray": False,
    }  # fmt: skip
    assert told.stages["gpu"].findings == (Finding(stage="gpu", **change),)
    assert (told.boot_id, told.serving, told.kv_tokens, told.trouble) == ("b", True, 4096, None)


def test_who_is_at_work(hosts_tell) -> None:
    busy = {"pid": 12, "command": "module x", "since": "2026-11-22T06:00:00Z"}
    hosts_tell(json.dumps({**DOCUMENT, "busy": busy, "at_work": ["provision-weights.service"]}))
    (told,) = verify([host("a")])
    assert (told.busy, told.at_work) == (Busy(**busy), ("provision-weights.service",))


def test_hosts_in_order_and_one_that_is_gone(hosts_tell) -> None:
    gone = Trouble("timeout", "10.0.0.1 did not answer within 10 s.", "Is it up?", unreachable=True)
    seen: list[str] = []
    hosts_tell({"trouble": gone}, json.dumps(DOCUMENT))
    first, second = verify([host("a"), host("b")], on_host=lambda told: seen.append(told.host))
    assert (first.host, first.trouble, second.host, second.trouble) == ("a", gone, "b", None)
    assert seen == ["a", "b"]


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', "Killed"])
def test_an_answer_that_is_none(hosts_tell, text) -> None:
    hosts_tell({"text": text, "code": 137, "error": "out of memory"})
    (told,) = verify([host("a")])
    assert told.trouble is not None
    assert told.trouble.kind == "verifier"
    assert "ended with 137 and said: out of memory" in told.trouble.message


def test_what_hosts_are_asked(hosts_tell) -> None:
    asked = hosts_tell(json.dumps(DOCUMENT), json.dumps(DOCUMENT))
    verify([host("a"), host("b", ansible_python_interpreter="/usr/bin/python3.12")], ["host", "gpu"], who=False)
    assert "--stages host,gpu" in asked[0].script
    assert "--who" not in asked[0].script
    assert "exec /usr/bin/python3.12 -I -S" in asked[1].script
    assert asked[0].text == asked[1].text
    assert asked[0].text.startswith("#!/usr/bin/python3 -IS\n")


def test_room_for_tokens_is_read_from_the_engines_metrics() -> None:
    line = 'vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="%d",num_gpu_blocks="%s"} 1.0\n'
    assert kv_tokens_in("# HELP x\n" + line % (0, "100") + line % (1, "50")) == 2400
    assert kv_tokens_in(line % (0, "None")) is None
    assert kv_tokens_in("") is None


def test_only_hosts_that_can_mend_themselves_are_asked_to(hosts_tell) -> None:
    change = {**CHANGE, "who": None}
    mended = {"swap": [{"module": "text_files", "changes": [change], "seconds": 0.2, "error": None}]}
    asked = hosts_tell(json.dumps({**DOCUMENT, "stages": {"swap": STAGE}, "mended": mended}))
    (told,) = mend({"b": ("swap", "gpu")}, [host("a"), host("b")], ("swap", "gpu", "drift"))
    assert [one.host.name for one in asked] == ["b"]
    assert "--stages swap,gpu,drift --mend swap,gpu" in asked[0].script
    assert "--follow" in asked[0].script  # as in the look before: a branch that moved is not to stand all at once
    assert told.mended == (Mended("swap", "text_files", (Finding(stage="swap", **change),), 0.2),)
    assert told.stages["swap"].stands
