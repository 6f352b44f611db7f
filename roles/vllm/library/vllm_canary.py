#!/usr/bin/python
"""Ansible module: a served model is one that generates tokens, not a unit that is active."""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import read_text, run
from ansible.module_utils.provision_receipt import record_step

DOCUMENTATION = r"""
module: vllm_canary
short_description: Waits until vLLM generates tokens
description:
  - Waits for vLLM to be ready, then asks for a completion and counts its tokens. Changes nothing. When the unit keeps
    ending, or the time is up, it fails with the last lines of the unit's journal.
  - With O(answer), it asks O(prompt) in a chat, without chance, and fails where what comes back does not match.
options:
  url:
    description: Base of the API.
    type: str
    required: true
  model:
    description: The name that the model is served by.
    type: str
    required: true
  key_file:
    description: File of the server's environment with C(VLLM_API_KEY), where the API asks for a key.
    type: str
    default: ""
  unit:
    description: The unit that serves.
    type: str
    default: vllm.service
  prompt:
    description: What is asked where an answer is expected.
    type: str
    default: ""
  answer:
    description: Regular expression that must be found in what comes back. Empty takes any token for an answer.
    type: str
    default: ""
  timeout:
    description: Seconds until it must have answered.
    type: int
    default: 1800
attributes:
  check_mode:
    support: full
    details: Asks nothing in check mode.
  diff_mode:
    support: none
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Generate with the model
  vllm_canary:
    url: http://10.1.4.72:8000
    model: tiny
    prompt: What is 12 + 30? Say the number alone.
    answer: '\b42\b'
"""

RETURN = r"""
latency_ms:
  description: Milliseconds that the completion took.
  returned: success, not in check mode
  type: int
  sample: 87
tokens:
  description: Tokens that it had.
  returned: success, not in check mode
  type: int
waited_s:
  description: Seconds until vLLM was ready.
  returned: success, not in check mode
  type: float
"""

PAUSE_S = 0.5
ANSWER_S = 120  # the first completion may still compile
ANSWER_TOKENS = 512  # a model that thinks aloud comes to its answer late
ATTEMPTS = 3  # an engine that dies at its first request is started again by systemd, and may do better
ATTEMPT_PAUSE_S = 5  # in which an engine that has died is noticed to be dead
RESTARTS = 3  # a unit that ended this often while we waited will not come up by waiting


def api_key(path: str) -> str:
    """The key that the server was given; empty for none."""
    found = re.search(r'^VLLM_API_KEY=(".*")$', (read_text(path) or "") if path else "", re.MULTILINE)
    return str(json.loads(found[1])) if found else ""


def request(params: dict[str, Any], path: str, body: dict[str, Any] | None, timeout_s: float) -> bytes:
    """One call of the API, straight to the host past any proxy."""
    headers = {"Content-Type": "application/json"}
    key = api_key(params["key_file"])
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    call = urllib.request.Request(params["url"] + path, data, headers)  # noqa: S310  http, from the inventory
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(call, timeout=timeout_s) as answer:
        content: bytes = answer.read()
    return content


def is_ready(params: dict[str, Any]) -> bool:
    """Whether the API says that it is ready."""
    try:
        request(params, "/health", None, 5)
    except (OSError, ValueError):
        return False
    return True


def unit_state(unit: str) -> tuple[str, int]:
    """What systemd says of the unit, and how often it started it again."""
    lines = run(["systemctl", "show", unit, "--property=ActiveState,NRestarts"], check=False).out.splitlines()
    shown = dict(line.split("=", 1) for line in lines)
    return shown.get("ActiveState", "unknown"), int(shown.get("NRestarts") or 0)


def last_words(unit: str) -> str:
    """The end of the unit's journal."""
    journal = run(["journalctl", "-u", unit, "-n", "25", "--no-pager", "-o", "cat"], check=False).out.strip()
    return f"The journal of {unit} ends with:\n{journal}\nSee more on the host with: journalctl -u {unit}"


def wait(params: dict[str, Any]) -> str:
    """Wait until the API is ready; what is wrong if it does not come to that, else empty."""
    unit, deadline = params["unit"], time.monotonic() + params["timeout"]
    _, before = unit_state(unit)
    while not is_ready(params):
        state, restarts = unit_state(unit)
        if state in ("inactive", "failed"):
            return f"{unit} is {state}, so nothing serves. {last_words(unit)}"
        if restarts - before >= RESTARTS:
            return f"{unit} ended {restarts - before} times while it was waited for. {last_words(unit)}"
        if time.monotonic() > deadline:
            return (
                f"{params['url']} is not ready after {params['timeout']} s (vllm_start_timeout); {unit} is {state}. "
                + last_words(unit)
            )
        time.sleep(PAUSE_S)
    return ""


def generate(params: dict[str, Any]) -> tuple[int, str]:
    """The tokens of one completion, and what is wrong if there are none, or if they do not say what is expected."""
    path, body = "/v1/completions", {"prompt": "1 2 3", "max_tokens": 4, "ignore_eos": True}
    if params["answer"]:
        asked = [{"role": "user", "content": params["prompt"]}]
        path, body = "/v1/chat/completions", {"messages": asked, "max_tokens": ANSWER_TOKENS, "temperature": 0}
    try:
        answer = json.loads(request(params, path, {"model": params["model"], **body}, ANSWER_S))
        tokens = int(answer["usage"]["completion_tokens"])
        wrong = objection(params, answer) if params["answer"] else ""
    except urllib.error.HTTPError as error:
        return 0, f"it answered {error.code}: {error.read(500).decode(errors='replace')}"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return 0, f"it gave no answer: {getattr(error, 'reason', error)}"
    return tokens, wrong if tokens else "no token came back"


def objection(params: dict[str, Any], answer: dict[str, Any]) -> str:
    """What is wrong with a chat's answer: nothing, if what is expected is found in it."""
    said = answer["choices"][0]["message"]
    text = " ".join(str(said[part]) for part in ("reasoning", "reasoning_content", "content") if said.get(part))
    if re.search(params["answer"], text):
        return ""
    wanted = f"{params['answer']!r} (vllm_canary_answer)"
    return f"it said {text[-300:]!r} to {params['prompt']!r}, in which {wanted} is not found"


def canary(params: dict[str, Any]) -> dict[str, Any]:
    """Wait and generate, a few times over; the module's result, or `msg` with what is wrong."""
    begin = time.monotonic()
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(ATTEMPT_PAUSE_S)
        wrong = wait(params)
        if wrong:
            return {"msg": wrong}
        ready = time.monotonic()
        tokens, wrong = generate(params)
        if not wrong:
            latency = round((time.monotonic() - ready) * 1000)
            return {"latency_ms": latency, "tokens": tokens, "waited_s": round(ready - begin, 1)}
    told = f"{params['url']} says that it is ready, but asked {ATTEMPTS} times for a completion {wrong}. "
    return {"msg": told + last_words(params["unit"])}


def main() -> None:
    spec = {
        "url": {"type": "str", "required": True},
        "model": {"type": "str", "required": True},
        "key_file": {"type": "str", "default": "", "no_log": False},
        "unit": {"type": "str", "default": "vllm.service"},
        "prompt": {"type": "str", "default": ""},
        "answer": {"type": "str", "default": ""},
        "timeout": {"type": "int", "default": 1800},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    if module.check_mode:
        module.exit_json(changed=False)
    result = canary(module.params)
    if "msg" in result:
        module.fail_json(**result)
    record_step(module, {})
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
