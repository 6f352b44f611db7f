"""`provision stack`: the screen, the document, the exit code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

import provision.stack
from provision import exits
from provision.cli import stack as command
from provision.cli.main import main
from provision.inventory import Host
from provision.stack import load_stack
from provision.stack.survey import Difference, HostVersions

SCHEMA = json.loads((Path(provision.stack.__file__).parent / "stack.schema.json").read_text(encoding="utf-8"))
EXAMPLE = "inventory/2x8xh800"
BAD = "stack:\n  driver: 575.57.08\n  vllm: 0.32.0\n  ray: 2.60.0\n  uv: 0.13.9\n  huggingface_hub: 2.4.0\n"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["stack", *arguments])
    said = capsys.readouterr()
    return int(caught.value.code), said.out, said.err


def host(name: str, differs=(), error=None, **has) -> HostVersions:
    one = Host(name, "10.0.0.1", None, None, None, (), {}, ("serving", "r"))
    return HostVersions(one, "r", has, tuple(differs), error)


def test_the_shipped_stack_is_told_with_what_ties_it(capsys):
    code, out, _ = run(capsys)
    assert code == exits.OK
    for words in (
        "default.lock.yml (shipped with provision)",
        "driver          580.126.20         line 3   has CUDA 13.0; the wheel of vLLM 0.32.0",
        "fabric manager  580.126.20         follows  where GPUs are joined by NVSwitches; refuses to run with another",
        "NCCL (vLLM)     2.29.7             bundled  comes as a wheel with PyTorch 2.13.0",
        "note: nccl-tests measure NCCL 2.28.9 of the system",
    ):
        assert words in out


def test_an_inventory_says_where_the_toolkit_is_installed(capsys):
    code, out, _ = run(capsys, EXAMPLE)
    assert code == exits.OK
    assert "installed where the inventory says cuda_toolkit: true (0 of 2 hosts)" in out


def test_another_nccl_for_vllm_is_pointed_at(capsys, tmp_path):
    shutil.copytree(EXAMPLE, tmp_path / "prod")
    serving = tmp_path / "prod/group_vars/serving.yml"
    serving.write_text(
        serving.read_text() + "vllm_env: { VLLM_NCCL_SO_PATH: /usr/lib/x86_64-linux-gnu/libnccl.so.2 }\n"
    )
    _, out, _ = run(capsys, str(tmp_path / "prod"))
    assert "note: vllm_env.VLLM_NCCL_SO_PATH is set for h800-01, h800-02. If it names another NCCL, vLLM has two" in out


def test_an_impossible_set_is_refused_with_file_and_line(capsys, tmp_path):
    (tmp_path / "stack.lock.yml").write_text(BAD)
    code, out, err = run(capsys, str(tmp_path))
    assert (code, out) == (exits.INVALID, "")
    assert err.startswith(f"{tmp_path}/stack.lock.yml:2: stack.driver is 575.57.08; the wheel of vLLM 0.32.0 is built")
    assert "\n  Set driver to 580.65.06 or later" in err


def test_hosts_are_asked_of_an_inventory_only(capsys):
    code, _, err = run(capsys, "--hosts")
    assert code == exits.USAGE
    assert "provision stack INVENTORY --hosts" in err


def test_the_document_is_what_its_schema_says(capsys, tmp_path, monkeypatch):
    code, out, _ = run(capsys, "--json")
    document = json.loads(out)
    jsonschema.validate(document, SCHEMA)
    assert (code, document["hosts"], document["problems"]) == (exits.OK, None, [])
    (tmp_path / "stack.lock.yml").write_text(BAD)
    code, out, _ = run(capsys, str(tmp_path), "--json")
    refused = json.loads(out)
    jsonschema.validate(refused, SCHEMA)
    assert code == exits.INVALID
    assert (refused["problems"][0]["line"], refused["parts"]) == (2, [])
    hosts = [host("a", [Difference("Ray", "2.60.0", None)], kernel="6.1"), host("b", error="gone", kernel=None)]
    monkeypatch.setattr(command, "survey", lambda _fleet: hosts)
    code, out, _ = run(capsys, EXAMPLE, "--hosts", "--json")
    asked = json.loads(out)
    jsonschema.validate(asked, SCHEMA)
    assert code == exits.PENDING
    assert asked["hosts"][0]["differs"] == [{"part": "Ray", "expected": "2.60.0", "has": None}]


@pytest.mark.parametrize(
    ("hosts", "code", "said"),
    [
        ([host("a", kernel="6.1"), host("b", kernel="6.1")], exits.OK, "2 hosts asked: all have these versions."),
        ([host("a", kernel="6.1"), host("b", kernel="6.8")], exits.FAILED, "✗ r: kernel is not the same on all hosts: a has 6.1, b has 6.8."),
        ([host("a", [Difference("Ray", "2.60.0", "2.59.0")])], exits.PENDING, "≠ a: Ray is 2.59.0, expected 2.60.0."),
        ([host("a", [Difference("Ray", "2.60.0", None)])], exits.PENDING, "provision plan inventory/2x8xh800 --limit a"),
        ([host("a"), host("b", error="no route.")], exits.UNREACHABLE, "✗ b cannot be asked: no route."),
    ],
)  # fmt: skip
def test_what_the_hosts_have_decides_the_exit_code(capsys, monkeypatch, hosts, code, said):
    monkeypatch.setattr(command, "survey", lambda _fleet: hosts)
    found, out, _ = run(capsys, EXAMPLE, "--hosts")
    assert found == code
    assert said in out


def test_the_lock_file_of_the_lab_is_the_shipped_one():
    shipped, lab = load_stack(Path("none")), load_stack(Path("inventory/lab"))
    assert {**vars(shipped), "path": ""} == {**vars(lab), "path": ""}
