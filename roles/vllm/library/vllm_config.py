#!/usr/bin/python
"""Ansible module: what vLLM is started with, put in place only after vLLM's own parser accepted it."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any, Iterator

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_files import work_folder
from ansible.module_utils.provision_host import (
    Change,
    HostError,
    absent_change,
    access_changes,
    converge,
    file_change,
    read_text,
    remove_file,
    run,
    sha256_text,
    write_file,
)

DOCUMENTATION = r"""
module: vllm_config
short_description: Converges vLLM's configuration and environment, checked by vLLM itself
description:
  - When a file would change, the installed vLLM's own command line reads the new text first; what it refuses is not put
    in place. When nothing would change, vLLM is not asked.
options:
  state:
    description: V(absent) removes the files.
    type: str
    choices: [present, absent]
    default: present
  config:
    description: Text of C(vllm.yaml), in the form of C(vllm serve --config).
    type: str
    default: ""
  environment:
    description: Environment of the server, by name.
    type: dict
    default: {}
  api_key:
    description: Key that clients must send; kept in a file of its own that only root can read.
    type: str
    default: ""
  api_key_sha256:
    description: Instead of O(api_key), the SHA-256 of that file, in check mode only. A receipt holds this.
    type: str
    default: ""
  python:
    description: The interpreter of the serving environment; in check mode it may be absent yet.
    type: path
  parser:
    description: Program for that interpreter that reads a configuration as C(vllm serve) does.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: The diff tells that the key differs, and never what it is.
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Configure vLLM
  vllm_config:
    config: |
      model: /data/models/provision-lab--tiny-deepseek-v3/6b72faa75d5c63e102e1b5a54b3fed7bacd9449f
      tensor-parallel-size: 2
    environment: {VLLM_HOST_IP: 10.1.4.72}
    python: /opt/provision/env/5d1ac6b2f9c0/bin/python
    parser: "{{ lookup('ansible.builtin.file', 'parse.py') }}"
"""

RETURN = r"""
consumes:
  description: The files that the unit reads, each with the SHA-256 of the content wanted.
  returned: always
  type: dict
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Rewrote /etc/provision/vllm.yaml.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each file that differs.
  returned: always
  type: list
  elements: dict
"""

CONFIG, ENVIRONMENT = "/etc/provision/vllm.yaml", "/etc/provision/vllm.env"
WORK = "/run/provision"
SECRETS = "/etc/provision/secrets/vllm.env"


def environment_text(variables: dict[str, Any]) -> str:
    """The environment as systemd reads it: one NAME="value" a line."""
    lines = [f"{name}={json.dumps(str(value), ensure_ascii=False)}\n" for name, value in sorted(variables.items())]
    return "# Written by provision (role vllm).\n" + "".join(lines)


def secret_text(api_key: str) -> str:
    """The key as systemd reads it."""
    return f"VLLM_API_KEY={json.dumps(api_key, ensure_ascii=False)}\n"


def near(name: str, known: list[str]) -> str:
    """A hint at the known name that is most like this one, with a space before it; empty if none is."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f" Did you mean {found[0]}?" if found else ""


def explain(error: str, options: list[str]) -> str:
    """vLLM's refusal, in the words of the inventory."""
    variable = re.fullmatch(r"unknown environment variable: (\S+)", error)
    if variable:
        return f"vLLM knows no environment variable {variable[1]} (vllm_env).{near(variable[1], options)}"
    names = [word for word in error.split() if word.startswith("--")] if "unrecognized arguments" in error else []
    if names:
        known = [option.lstrip("-") for option in options]
        told = [f"{name.lstrip('-')}.{near(name.lstrip('-'), known)}" for name in names]
        return "vllm serve has no argument " + " and no argument ".join(told)
    return f"vllm serve refuses its configuration: {error}"


def verify(params: dict[str, Any]) -> None:
    """Have vLLM read the new configuration; a refusal is a HostError."""
    env = {name: str(value) for name, value in params["environment"].items()}
    with work_folder(WORK, "verify-vllm") as folder:
        config = Path(folder, "vllm.yaml")
        config.write_text(params["config"], encoding="utf-8")
        program = Path(folder, "parse.py")
        program.write_text(params["parser"], encoding="utf-8")
        # Its caches are the service's; root must leave nothing there.
        env.update(
            HOME=str(folder),
            VLLM_CACHE_ROOT=str(folder),
            TORCHINDUCTOR_CACHE_DIR=str(folder),
            VLLM_LOGGING_LEVEL="ERROR",
        )
        done = run([params["python"], str(program), str(config)], check=False, timeout_s=600, env=env)
    try:
        answer = json.loads(done.out.strip().splitlines()[-1])
        error, options = answer["error"], answer["options"]
    except (ValueError, KeyError, IndexError, TypeError):
        last = ((done.err.strip() or done.out.strip()).splitlines() or ["no word"])[-1]
        raise HostError(f"vLLM could not be asked about its configuration; it ended with {done.rc}: {last}") from None
    if error:
        raise HostError(
            f"{explain(error, options)} Nothing was changed. Correct vllm_args or vllm_env in the inventory; what "
            f"there is, on this host: {os.path.dirname(params['python'])}/vllm serve --help=all"
        )


def put_secret(text: str) -> None:
    """Write the file into a directory that only root can enter."""
    os.makedirs(os.path.dirname(SECRETS), mode=0o700, exist_ok=True)
    write_file(SECRETS, text, 0o600)


def plan_secret(api_key: str, sha256: str) -> Iterator[Change]:
    """The file with the key: a diff would show it, so it only says that it differs."""
    there = read_text(SECRETS)
    words = (f"{'no' if there is None else 'another'} key\n", f"{'the key wanted' if sha256 else 'no key'}\n")
    if not sha256 and there is not None:
        yield Change("Removed the key of the API.", lambda: remove_file(SECRETS), SECRETS, *words)
    elif sha256 and (there is None or sha256_text(there) != sha256 or any(access_changes(SECRETS, 0o600))):
        yield Change("Wrote the key of the API.", lambda: put_secret(secret_text(api_key)), SECRETS, *words)


def plan(params: dict[str, Any]) -> Iterator[Change]:
    """What differs, once vLLM has accepted it."""
    if params["state"] == "absent":
        yield from absent_change(CONFIG)
        yield from absent_change(ENVIRONMENT)
        yield from plan_secret("", "")
        return
    changes = [
        *file_change(CONFIG, params["config"]),
        *file_change(ENVIRONMENT, environment_text(params["environment"])),
    ]
    if changes and os.path.exists(params["python"]):
        verify(params)
    yield from changes
    yield from plan_secret(params["api_key"], params["api_key_sha256"])


def facts(params: dict[str, Any]) -> dict[str, Any]:
    """What the unit is to be started with."""
    if params["state"] == "absent":
        return {"consumes": {}}
    consumes = {
        CONFIG: sha256_text(params["config"]),
        ENVIRONMENT: sha256_text(environment_text(params["environment"])),
    }
    if params["api_key_sha256"]:
        consumes[SECRETS] = params["api_key_sha256"]
    return {"consumes": consumes}


def main() -> None:
    spec = {
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "config": {"type": "str", "default": ""},
        "environment": {"type": "dict", "default": {}},
        "api_key": {"type": "str", "default": "", "no_log": True},
        "api_key_sha256": {"type": "str", "default": "", "no_log": False},
        "python": {"type": "path"},
        "parser": {"type": "str", "default": ""},
    }
    module = AnsibleModule(
        argument_spec=spec, required_if=[("state", "present", ["python", "config"])], supports_check_mode=True
    )
    params = module.params
    if params["api_key"]:
        params["api_key_sha256"] = sha256_text(secret_text(params["api_key"]))
    converge(module, lambda: plan(params), lambda: facts(params), forget=["api_key"])


if __name__ == "__main__":
    main()
