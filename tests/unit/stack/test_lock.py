from __future__ import annotations

from pathlib import Path

import pytest

from provision.errors import InventoryError
from provision.stack import DEFAULT_LOCK, load_stack, vllm_arguments

GOOD = "stack:\n  driver: 580.126.20\n  vllm: 0.32.0\n  ray: 2.60.0\n  uv: 0.13.9\n  huggingface_hub: 2.4.0\n"


def stack(tmp_path: Path, text: str):
    (tmp_path / "stack.lock.yml").write_text(text)
    return load_stack(tmp_path)


def said(tmp_path: Path, text: str) -> list[tuple[int | None, str]]:
    with pytest.raises(InventoryError) as caught:
        stack(tmp_path, text)
    return [(problem.line, problem.message) for problem in caught.value.problems]


def test_the_shipped_lock_holds_where_there_is_none(tmp_path):
    assert load_stack(tmp_path).path == DEFAULT_LOCK.resolve()


def test_versions_are_as_written(tmp_path):
    found = stack(tmp_path, GOOD.replace("2.60.0", "2.60"))
    assert (found.ray, found.driver, found.python) == ("2.60", "580.126.20", None)


def test_what_is_installed_on_demand_may_be_left_out(tmp_path):
    assert (stack(tmp_path, GOOD).cuda_toolkit, stack(tmp_path, GOOD).nccl) == (None, None)
    found = stack(tmp_path, GOOD + "  cuda_toolkit: 13.0.3\n  nccl: 2.28.9-1+cuda13.0\n")
    assert (found.cuda_toolkit, found.nccl) == ("13.0.3", "2.28.9-1+cuda13.0")


def test_a_file_beside_the_hosts_file_counts(tmp_path):
    (tmp_path / "hosts.yml").write_text("")
    (tmp_path / "stack.lock.yml").write_text(GOOD.replace("0.32.0", "0.33.0"))
    assert load_stack(tmp_path / "hosts.yml").vllm == "0.33.0"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        (GOOD.replace("580.126.20", "580.65.05"), 2, "at least 580.65.06"),
        (GOOD.replace("580.126.20", '"580"'), 2, "expected an exact version such as 580.126.20"),
        (GOOD.replace("0.32.0", "latest"), 3, "expected an exact version"),
        (GOOD + "  python: 3.10\n", 7, "vLLM 0.32.0 runs on Python 3.11"),
        (GOOD + "  nccl: 2.27.7\n", 7, "expected an exact version such as 2.28.9-1+cuda13.0"),
        (GOOD + "  cuda_toolkit: 13.0\n", 7, "expected an exact version such as 13.0.3"),
        (GOOD + "  cuda_toolkit: 12.8.1\n", 7, "PyTorch refuses"),
        (GOOD + "  ofed: 24.10\n", 7, "stack.ofed is not known"),
        (GOOD + "other: 1\n", 7, "other does not belong here"),
        (GOOD.replace("  uv: 0.13.9\n", ""), None, "stack.uv is missing"),
        ("stack: [\n", 2, "is not YAML"),
        ("", None, "has no mapping `stack`"),
    ],
)
def test_what_is_wrong_has_a_line(tmp_path, text, line, message):
    assert any(message in found and at == line for at, found in said(tmp_path, text)), said(tmp_path, text)


def test_arguments_of_vllm():
    known = vllm_arguments("0.32.0")
    assert {"max-model-len", "enable-expert-parallel", "no-enable-expert-parallel"} <= known
    assert "swap-space" not in known
    assert "disable-log-requests" in vllm_arguments("0.33.0") - known
    assert vllm_arguments("9.9.9") is None
