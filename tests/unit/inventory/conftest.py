from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

PROFILES = {"8xh20-96": {"gpus": {"count": 8}}, "4xa100-80": {"gpus": {"count": 4}}}
ROLES = {
    "preflight": {"hardware_profile": {"type": "str"}, "lab": {"type": "bool"}, "stack": {"type": "dict"}},
    "swap": {"swap_size": {"type": "str", "default": "0"}},
    "gpu": {
        "gpu_locked_clocks": {"type": "dict"},
        "gpu_persistence": {"type": "str", "choices": ["on", "off"]},
        "gpu_limits": {"type": "list", "elements": "dict", "options": {"index": {"type": "int", "required": True}, "watts": {"type": "int"}}},
    },
    "weights": {"weights_repo": {"type": "str", "required": True, "description": "Where from."}, "weights_token": {"type": "str", "no_log": True}},
    "rdma": {"rdma_env": {"type": "dict"}},
    "ray": {"ray_env": {"type": "dict"}, "ray_address": {"type": "str"}, "ray_num_gpus": {"type": "int"}},
    "vllm": {
        "vllm_tensor_parallel_size": {"type": "int"},
        "vllm_pipeline_parallel_size": {"type": "int"},
        "vllm_data_parallel_size": {"type": "int"},
        "vllm_args": {"type": "dict"},
        "vllm_executor": {"type": "str", "choices": ["ray", "mp"]},
    },
}  # fmt: skip
DEFAULTS = {
    "ray": {"ray_num_gpus": "{{ preflight_profiles[hardware_profile].gpus.count }}"},
    "vllm": {"vllm_tensor_parallel_size": "{{ ray_num_gpus }}", "vllm_pipeline_parallel_size": 1},
}


@pytest.fixture(autouse=True)
def content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small roles of our own, so that these tests say what the validator does and not what today's roles declare."""
    root = tmp_path / "content"
    for role, options in ROLES.items():
        write(root / f"roles/{role}/meta/argument_specs.yml", {"argument_specs": {"main": {"options": options}}})
        write(root / f"roles/{role}/defaults/main.yml", DEFAULTS.get(role, {}))
    write(root / "roles/preflight/vars/main.yml", {"preflight_profiles": PROFILES})
    known = "roles/host/module_utils/provision_nccl.py"
    write(root / known, (Path(__file__).parents[3] / known).read_text())
    monkeypatch.setattr("provision.content.content_root", lambda: root)
    monkeypatch.setattr("provision.inventory.load.content_root", lambda: root)
    return root


def write(path: Path, data: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False))


Make = Callable[..., Path]

HOSTS = """\
serving:
  children:
    a:
      hosts:
        n1: {ansible_host: 10.0.0.1}
        n2: {ansible_host: 10.0.0.2}
"""
SERVING = """\
hardware_profile: 8xh20-96
weights_repo: org/model
vllm_tensor_parallel_size: 8
vllm_pipeline_parallel_size: 2
"""


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write an inventory: `files` by their path below it, on top of a small valid one."""

    def make(files: dict[str, str] | None = None) -> Path:
        root = tmp_path / "inv"
        for name, text in {"hosts.yml": HOSTS, "group_vars/serving.yml": SERVING, **(files or {})}.items():
            write(root / name, text)
        return root

    return make
