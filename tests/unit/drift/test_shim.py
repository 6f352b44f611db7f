"""What stands for Ansible's own module class on a host: defaults, and secrets that are not shown."""

from __future__ import annotations

import pytest

from provision.drift.host.basic import MASK, AnsibleModule, Step, filled, masked, secrets_in

UNIT = {"name": {"type": "str", "required": True}, "enabled": {"type": "bool", "default": True}}
SPEC = {
    "units": {"type": "list", "elements": "dict", "options": UNIT},
    "login": {"type": "dict", "options": {"token": {"no_log": True}, "user": {"default": "vllm"}}},
    "tokens": {"type": "list", "no_log": True},
    "mode": {"type": "str", "default": "0644"},
}


@pytest.fixture
def module() -> AnsibleModule:
    Step.params = {"login": {"token": "geheim"}, "tokens": ["eins", "geheimer"], "units": [{"name": "a"}]}
    return AnsibleModule(argument_spec=SPEC, supports_check_mode=True)


def test_defaults_reach_into_options_of_options() -> None:
    whole = filled({"units": [{"name": "a"}, {"name": "b", "enabled": False}], "login": {}}, SPEC)
    assert whole["units"] == [{"name": "a", "enabled": True}, {"name": "b", "enabled": False}]
    assert whole["login"] == {"token": None, "user": "vllm"}
    assert (whole["mode"], whole["tokens"]) == ("0644", None)


def test_what_is_given_is_not_replaced_even_where_it_is_empty() -> None:
    assert filled({"mode": None, "units": []}, SPEC)["mode"] is None


def test_secrets_are_found_at_every_depth(module: AnsibleModule) -> None:
    assert set(secrets_in(module.params, SPEC)) == {"geheim", "eins", "geheimer"}


def test_a_result_shows_none_of_them(module: AnsibleModule) -> None:
    with pytest.raises(SystemExit):
        module.exit_json(changed=True, actions=["Wrote geheimer."], diff=[{"before": "x=eins", "after": "geheim"}])
    assert Step.result["actions"] == [f"Wrote {MASK}."]
    assert Step.result["diff"] == [{"before": f"x={MASK}", "after": MASK}]
    assert Step.result["failed"] is False


def test_a_failure_is_kept_with_its_sentence(module: AnsibleModule) -> None:
    with pytest.raises(SystemExit):
        module.fail_json(msg="geheim is no key.", changed=False)
    assert Step.result == {"changed": False, "failed": True, "msg": f"{MASK} is no key."}


def test_only_texts_are_masked() -> None:
    assert masked({"a": 1, "b": [None, True, "s"]}, ("s",)) == {"a": 1, "b": [None, True, MASK]}
