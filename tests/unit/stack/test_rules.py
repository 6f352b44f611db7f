"""Each rule by itself: what it lets pass, and what it says of what it does not."""

from __future__ import annotations

import pytest

from provision.stack import DEFAULT_LOCK, read_lock, rules
from provision.stack.releases import driver_cuda, nccl_parts, wheel_cuda

GOOD = {
    "driver": "580.126.20",
    "vllm": "0.32.0",
    "ray": "2.60.0",
    "python": "3.12",
    "cuda_toolkit": "13.0.3",
    "nccl": "2.28.9-1+cuda13.0",
}


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_a_sound_set_passes_each_rule_whole_or_without_what_is_optional(rule):
    assert list(rule(GOOD)) == []
    assert list(rule({name: GOOD[name] for name in ("driver", "vllm", "ray")})) == []


@pytest.mark.parametrize(
    ("rule", "changed", "key", "said"),
    [
        (
            rules.driver_runs_the_wheel,
            {"driver": "580.65.05"},
            "driver",
            "stack.driver is 580.65.05; the wheel of vLLM 0.32.0 is built for CUDA 13.0, which needs at least 580.65.06.",
        ),
        (rules.driver_runs_the_wheel, {"driver": "570.211.01", "vllm": "0.99.0"}, "driver", "needs at least 580.65.06"),
        (rules.driver_runs_the_wheel, {"driver": "470.1.2", "vllm": "0.13.0"}, "driver", "CUDA 12.8, which needs at least 525.60.13"),
        (rules.python_runs_vllm, {"python": "3.10"}, "python", "vLLM 0.32.0 runs on Python 3.11 up to, not including, 3.15."),
        (rules.python_runs_vllm, {"python": "3.15.1"}, "python", "not including, 3.15."),
        (rules.python_runs_ray, {"python": "3.9"}, "python", "Ray 2.60.0 runs on Python 3.10 up to"),
        (rules.ray_carries_vllm, {"ray": "2.9.3"}, "ray", "stack.ray is 2.9.3; vLLM 0.32.0 needs at least 2.48.0."),
        (rules.driver_runs_the_toolkit, {"driver": "575.57.08"}, "cuda_toolkit", "need at least driver 580.65.06; stack.driver is 575.57.08."),
        (rules.toolkit_fits_the_wheel, {"cuda_toolkit": "12.8.1"}, "cuda_toolkit", "built for CUDA 13.0, and PyTorch refuses"),
        (rules.toolkit_fits_the_wheel, {"vllm": "0.13.0"}, "cuda_toolkit", "built for CUDA 12.8"),
        (rules.driver_runs_nccl, {"driver": "575.57.08"}, "nccl", "built for CUDA 13.0, which needs at least driver 580.65.06"),
        (rules.nccl_fits_the_toolkit, {"nccl": "2.29.7-1+cuda12.9"}, "nccl", "built for CUDA 12.9; stack.cuda_toolkit is 13.0.3"),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_told_with_a_way_out(rule, changed, key, said):
    (found,) = rule({**GOOD, **changed})
    assert found.key == key
    assert said in found.message
    assert found.hint.startswith("Set ")


def test_a_driver_for_cuda_12_runs_a_wheel_for_cuda_12():
    assert list(rules.driver_runs_the_wheel({**GOOD, "vllm": "0.13.0", "driver": "570.211.01"})) == []


def test_all_that_is_wrong_is_told_at_once():
    found = rules.broken({**GOOD, "driver": "575.57.08", "python": "3.9", "ray": "2.9.3"})
    assert {each.key for each in found} == {"driver", "python", "ray", "cuda_toolkit", "nccl"}


def test_the_shipped_lock_breaks_none():
    lock = read_lock(DEFAULT_LOCK)
    assert lock.problems == []
    assert {"cuda_toolkit", "nccl"} <= lock.versions.keys()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "nccl-tests measure NCCL 2.28.9 of the system, while vLLM talks by the 2.29.7"),
        ({"nccl": "2.29.7-1+cuda13.2"}, "NCCL 2.29.7-1+cuda13.2 is newer than the CUDA 13.0 of driver 580.126.20"),
        ({"cuda_toolkit": "13.3.1"}, "CUDA toolkit 13.3.1 is newer than the CUDA 13.0"),
        (
            {"vllm": "0.99.0"},
            "What the wheel of vLLM 0.99.0 brings along is not known here; its CUDA is taken to be 13.0.",
        ),
    ],
)
def test_what_works_and_should_be_known_is_a_note(changed, said):
    versions = {**GOOD, **changed}
    assert rules.broken(versions) == []
    assert any(said in note for note in rules.notes(versions)), rules.notes(versions)


def test_a_stack_of_one_nccl_has_no_note():
    assert rules.notes({**GOOD, "vllm": "0.26.0"}) == []


def test_a_driver_has_the_cuda_of_its_branch():
    assert [driver_cuda(version) for version in ("580.65.06", "585.1", "595.45.04", "470.1")] == [
        "13.0",
        "13.0",
        "13.2",
        None,
    ]


def test_the_cuda_of_a_release_that_is_not_listed():
    assert [wheel_cuda(version) for version in ("0.12.0", "0.13.0", "0.21.3", "0.40.1")] == [
        None,
        "12.8",
        "13.0",
        "13.0",
    ]


def test_a_package_of_nccl_names_release_and_cuda():
    assert nccl_parts("2.28.9-1+cuda13.0") == ("2.28.9", "13.0")
