"""Loading and checking a lock file: which versions it may name, and what ties them together."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from provision.errors import InventoryError, Problem

DEFAULT_LOCK = Path(__file__).parent / "default.lock.yml"
ARGUMENTS = Path(__file__).parent / "vllm_args"
EXACT = re.compile(r"\d+(\.\d+)+([a-z]+\d+|\.post\d+)?")
MINIMUM_DRIVER = "580.65.06"  # the first driver for CUDA 13.0, which vLLM's wheels are built for since 0.20
MINIMUM_PYTHON, BELOW_PYTHON = "3.11", "3.15"  # vLLM 0.32 and 0.33: Requires-Python >=3.11,<3.15


@dataclass(frozen=True)
class Stack:
    """The versions of one deployment. `python` is the serving environment's, None for what the role takes by itself."""

    path: Path
    driver: str
    vllm: str
    ray: str
    uv: str
    huggingface_hub: str
    python: str | None = None


REQUIRED = ("driver", "vllm", "ray", "uv", "huggingface_hub")
OPTIONAL = ("python",)


def load_stack(inventory: Path) -> Stack:
    """The lock file beside an inventory's hosts.yml, or the shipped one where there is none.

    Raises InventoryError with every problem of the file.
    """
    beside = (inventory if inventory.is_dir() else inventory.parent) / "stack.lock.yml"
    path = beside if beside.is_file() else DEFAULT_LOCK
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise InventoryError([Problem(f"is not YAML: {error.problem}.", path, line)]) from error
    versions, problems = _versions(path, root)
    for name, (version, line) in versions.items():
        problems += [Problem(message, path, line) for message in _flaws(name, version)]
    problems += [
        Problem(f"stack.{name} is missing: every version of a deployment is pinned here.", path)
        for name in REQUIRED
        if name not in versions
    ]
    if problems:
        raise InventoryError(problems)
    return Stack(path=path.resolve(), **{name: version for name, (version, _) in versions.items()})


def vllm_arguments(version: str) -> frozenset[str] | None:
    """The long options of `vllm serve` of a version, without dashes; None if that version's list is not shipped."""
    path = ARGUMENTS / f"{version}.txt"
    return frozenset(path.read_text(encoding="utf-8").split()) if path.is_file() else None


def _versions(path: Path, root: yaml.Node | None) -> tuple[dict[str, tuple[str, int]], list[Problem]]:
    """Each version as written (YAML would make 2.60 the number 2.6), with its line."""
    problems = []
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    stack = next((value for key, value in entries if key.value == "stack"), None)
    for key, _ in entries:
        if key.value != "stack":
            problems.append(
                Problem(f"{key.value} does not belong here: the file has one key, stack.", path, _line(key))
            )
    if not isinstance(stack, yaml.MappingNode):
        return {}, [*problems, Problem("has no mapping `stack` with the versions of the deployment.", path)]
    versions = {}
    for key, value in stack.value:
        name = str(key.value)
        if name not in REQUIRED + OPTIONAL:
            near = difflib.get_close_matches(name, REQUIRED + OPTIONAL, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It may name {', '.join(REQUIRED + OPTIONAL)}."
            problems.append(Problem(f"stack.{name} is not known.", path, _line(key), hint))
        else:
            versions[name] = (str(value.value) if isinstance(value, yaml.ScalarNode) else "", _line(key))
    return versions, problems


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _flaws(name: str, version: str) -> list[str]:
    if not EXACT.fullmatch(version):
        example = {"driver": "580.126.20", "python": "3.12"}.get(name, "0.32.0")
        return [f"stack.{name} is {version or 'empty'}; expected an exact version such as {example}."]
    if name == "driver" and _number(version) < _number(MINIMUM_DRIVER):
        return [
            f"stack.driver is {version}; vLLM's wheels are built for CUDA 13.0, which needs at least {MINIMUM_DRIVER}."
        ]
    if name == "python" and not _number(MINIMUM_PYTHON) <= _number(version) < _number(BELOW_PYTHON):
        return [
            f"stack.python is {version}; vLLM runs on Python {MINIMUM_PYTHON} up to, not including, {BELOW_PYTHON}."
        ]
    return []


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
