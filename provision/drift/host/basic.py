"""Stands for `ansible.module_utils.basic` where a module runs to verify what it once did, without Ansible around it.

A module gets the parameters of the step at hand, with its own defaults for those that the receipt left out, and check
mode. How it ends is a `Step.result`, in which secrets are masked.
"""

# ruff: noqa: ANN401 - results and parameters of modules are any JSON

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MASK = "********"


class Step:
    """The step that is being verified: there is one at a time."""

    module = ""
    params: dict[str, Any] = {}  # noqa: RUF012 - set before each step
    check_mode = True
    secrets: tuple[str, ...] = ()
    result: dict[str, Any] = {}  # noqa: RUF012


class AnsibleModule:
    """As much of Ansible's as this project's modules use."""

    def __init__(self, argument_spec: Mapping[str, Any], **_settings: Any) -> None:
        self._name = Step.module
        self.params = filled(Step.params, argument_spec)
        self.check_mode = Step.check_mode
        Step.secrets = tuple(sorted(set(secrets_in(self.params, argument_spec)), key=len, reverse=True))

    def exit_json(self, **result: Any) -> None:
        """End the module."""
        Step.result = masked({"failed": False, **result}, Step.secrets)
        raise SystemExit(0)

    def fail_json(self, msg: str, **result: Any) -> None:
        """End the module, which could not do what it is for."""
        Step.result = masked({**result, "failed": True, "msg": msg}, Step.secrets)
        raise SystemExit(1)

    def warn(self, warning: str) -> None:
        """A word to the person who watches a run; nobody watches this one."""


def filled(params: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, with the default of each that is missing, down to the options of options."""
    whole = {name: params.get(name, option.get("default")) for name, option in spec.items()}
    for name, option in spec.items():
        options, value = option.get("options"), whole[name]
        if options and isinstance(value, list):
            whole[name] = [filled(item, options) for item in value]
        elif options and isinstance(value, dict):
            whole[name] = filled(value, options)
    return whole


def secrets_in(params: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[str]:
    """The values of all parameters that are not to be shown."""
    for name, option in spec.items():
        value, options = params.get(name), option.get("options")
        if option.get("no_log") and value:
            yield from _texts(value)
        elif options and value:
            for item in value if isinstance(value, list) else [value]:
                yield from secrets_in(item, options)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
    elif value:
        yield str(value)


def masked(value: Any, secrets: tuple[str, ...]) -> Any:
    """A result without the secrets."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return value
    if isinstance(value, dict):
        return {key: masked(item, secrets) for key, item in value.items()}
    return [masked(item, secrets) for item in value] if isinstance(value, (list, tuple)) else value
