"""vLLM: nothing is put in place that its own parser refuses; nothing counts as served that generates no token."""

import json
from pathlib import Path

import pytest
from ansible.module_utils.provision_host import HostError, Ran, sha256_text

PARAMS = {"state": "present", "config": "port: 8000\n", "environment": {"VLLM_HOST_IP": "10.0.0.1"}, "api_key": ""}
PARAMS |= {"api_key_sha256": ""}
KEY = {"api_key": "s3cr3t", "api_key_sha256": sha256_text('VLLM_API_KEY="s3cr3t"\n')}


@pytest.fixture
def config(role_module, tmp_path, monkeypatch):
    module = role_module("vllm", "vllm_config")
    for name in ("CONFIG", "ENVIRONMENT", "SECRETS", "WORK"):
        monkeypatch.setattr(module, name, str(tmp_path / name.lower()))
    (tmp_path / "python").touch()
    module.params = {**PARAMS, "python": str(tmp_path / "python"), "parser": ""}
    module.answer = {"error": None, "options": []}
    module.asked = 0

    def run(*_, **__):
        module.asked += 1
        return Ran(0, f"a warning\n{json.dumps(module.answer)}\n", "")

    monkeypatch.setattr(module, "run", run)
    return module


def converge(module, **changes):
    actions = []
    for change in module.plan({**module.params, **changes}):
        change.act()
        actions.append(change.action)
    return actions


def test_vllm_is_asked_only_when_something_would_change(config):
    assert converge(config) == [f"Wrote {config.CONFIG}.", f"Wrote {config.ENVIRONMENT}."]
    assert converge(config) == []
    assert config.asked == 1
    assert converge(config, environment={"A": 'say "1"'}) == [f"Rewrote {config.ENVIRONMENT}."]
    assert Path(config.ENVIRONMENT).read_text().splitlines()[1] == 'A="say \\"1\\""'


@pytest.mark.parametrize(
    ("error", "options", "told"),
    [
        (
            "unrecognized arguments: --max-modle-len 512",
            ["--max-model-len", "--max-num-seqs"],
            "vllm serve has no argument max-modle-len. Did you mean max-model-len?",
        ),
        ("unrecognized arguments: --swap-space 32", ["--port"], "vllm serve has no argument swap-space. Nothing"),
        (
            "unknown environment variable: VLLM_HOST_IPS",
            ["VLLM_HOST_IP"],
            "knows no environment variable VLLM_HOST_IPS (vllm_env). Did you mean VLLM_HOST_IP?",
        ),
        (
            "argument --port: invalid int value: 'x'",
            [],
            "vllm serve refuses its configuration: argument --port: invalid",
        ),
    ],
)
def test_what_vllm_refuses_is_not_put_in_place(config, error, options, told):
    config.answer = {"error": error, "options": options}
    with pytest.raises(HostError) as raised:
        converge(config)
    assert told in str(raised.value)
    assert not Path(config.CONFIG).exists()


def test_a_parser_that_breaks_is_told_with_its_last_words(config, monkeypatch):
    monkeypatch.setattr(config, "run", lambda *_, **__: Ran(1, "", "Traceback\nImportError: libnuma.so.1"))
    with pytest.raises(HostError, match=r"could not be asked.*libnuma"):
        converge(config)


def test_before_there_is_an_environment_vllm_cannot_be_asked(config):
    assert len(converge(config, python="/none")) == 2
    assert config.asked == 0


def test_the_key_is_kept_apart_and_out_of_the_diff(config, tmp_path):
    converge(config)
    (change,) = config.plan({**config.params, **KEY})
    assert "s3cr3t" not in change.action + change.before + change.after
    change.act()
    assert (tmp_path / "secrets").read_text() == 'VLLM_API_KEY="s3cr3t"\n'
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o600
    assert list(config.plan({**config.params, **KEY})) == []
    assert config.SECRETS in config.facts({**config.params, **KEY})["consumes"]
    (tmp_path / "secrets").chmod(0o640)
    assert converge(config, **KEY) == ["Wrote the key of the API."]
    assert list(config.plan({**config.params, **KEY, "api_key": ""})) == []
    assert converge(config) == ["Removed the key of the API."]


def test_a_receipt_keeps_the_hash_of_the_key_alone(config, fake_module, monkeypatch):
    given, forgotten = fake_module(**{**config.params, **KEY, "api_key_sha256": ""}), []
    monkeypatch.setattr(config, "AnsibleModule", lambda **_: given)
    monkeypatch.setattr(config, "converge", lambda *_, forget: forgotten.extend(forget))
    config.main()
    assert forgotten == ["api_key"]
    assert given.params["api_key_sha256"] == KEY["api_key_sha256"]


def test_absent_removes_all(config):
    converge(config, **KEY)
    assert len(converge(config, state="absent")) == 3
    assert converge(config, state="absent") == []
    assert config.facts({**config.params, "state": "absent"}) == {"consumes": {}}


@pytest.fixture
def canary(role_module, fake_module, module_end, monkeypatch):
    module = role_module("vllm", "vllm_canary")
    params = {"url": "http://h:8000", "model": "tiny", "key_file": "", "unit": "vllm.service", "timeout": 60}
    module.params = params = {**params, "prompt": "What is 12 + 30?", "answer": ""}
    monkeypatch.setattr(module, "AnsibleModule", lambda **_: fake_module(**params))
    monkeypatch.setattr(module, "PAUSE_S", 0)
    monkeypatch.setattr(module, "ATTEMPT_PAUSE_S", 0)
    module.states, module.ready, module.answer = [("active", 0)], [], {"usage": {"completion_tokens": 4}}
    monkeypatch.setattr(module, "is_ready", lambda params: module.ready.pop(0) if module.ready else True)
    monkeypatch.setattr(
        module, "unit_state", lambda unit: module.states.pop(0) if len(module.states) > 1 else module.states[0]
    )
    monkeypatch.setattr(module, "run", lambda *_, **__: Ran(0, "ValueError: no GPUs\n", ""))
    monkeypatch.setattr(module, "request", lambda *_: json.dumps(module.answer).encode())

    def result():
        with pytest.raises(module_end) as end:
            module.main()
        return end.value.result

    module.result = result
    return module


def test_tokens_count_as_served(canary):
    canary.ready = [False, False]
    result = canary.result()
    assert (result["failed"], result["changed"], result["tokens"]) == (False, False, 4)


def test_the_key_is_read_where_the_server_has_it(role_module, config, monkeypatch, tmp_path):
    canary = role_module("vllm", "vllm_canary")
    asked = []

    class Opener:
        def open(self, call, timeout):
            asked.append(call.get_header("Authorization"))
            return open("/dev/null", "rb")

    monkeypatch.setattr(canary.urllib.request, "build_opener", lambda *_: Opener())
    converge(config, api_key='a "b"', api_key_sha256="another")
    for path in (config.SECRETS, "", str(tmp_path / "none")):
        canary.request({"url": "http://h", "key_file": path}, "/", None, 1)
    assert asked == ['Bearer a "b"', None, None]


def test_that_it_served_is_noted_for_the_receipt(canary, monkeypatch):
    noted = []
    monkeypatch.setattr(canary, "record_step", lambda module, facts: noted.append(facts))
    canary.result()
    canary.answer = {}
    assert canary.result()["failed"]
    assert noted == [{}]


def test_an_answer_without_tokens_does_not(canary):
    canary.answer = {"usage": {"completion_tokens": 0}}
    assert "no token came back" in canary.result()["msg"]


def test_an_answer_is_expected_where_the_inventory_says_one(canary):
    canary.params["answer"] = r"\b42\b"
    said = {"role": "assistant", "reasoning_content": None, "content": "It is 42."}
    canary.answer = {"usage": {"completion_tokens": 4}, "choices": [{"message": said}]}
    assert not canary.result()["failed"]
    said["content"] = "It is 420."
    message = canary.result()["msg"]
    assert "asked 3 times for a completion it said 'It is 420.' to 'What is 12 + 30?'" in message
    assert "vllm_canary_answer" in message


def test_an_engine_that_died_once_is_asked_again(canary, monkeypatch):
    dead = [OSError("refused")]

    def request(*_):
        if dead:
            raise dead.pop()
        return json.dumps(canary.answer).encode()

    monkeypatch.setattr(canary, "request", request)
    assert canary.result()["tokens"] == 4


def test_a_unit_that_keeps_ending_is_not_waited_for(canary):
    canary.ready = [False] * 9
    canary.states = [("active", 2), ("activating", 3), ("active", 4), ("activating", 5)]
    message = canary.result()["msg"]
    assert "vllm.service ended 3 times while it was waited for" in message
    assert "ValueError: no GPUs" in message


def test_a_unit_that_is_stopped_is_told(canary):
    canary.ready, canary.states = [False], [("inactive", 0)]
    assert "vllm.service is inactive, so nothing serves" in canary.result()["msg"]
