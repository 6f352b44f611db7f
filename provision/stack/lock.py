"""Loading and checking a lock file: which versions it may name, and what ties them together."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from provision.errors import InventoryError, Problem
from provision.stack.rules import broken

DEFAULT_LOCK = Path(__file__).parent / "default.lock.yml"
ARGUMENTS = Path(__file__).parent / "vllm_args"
EXACT = re.compile(r"\d+(\.\d+)+([a-z]+\d+|\.post\d+)?")
OWN_FORM = {  # keys whose versions look otherwise, with an example
    "cuda_toolkit": (re.compile(r"\d+\.\d+\.\d+"), "13.0.3"),
    "nccl": (re.compile(r"\d+\.\d+\.\d+-\d+\+cuda\d+\.\d+"), "2.28.9-1+cuda13.0"),
}
EXAMPLES = {"driver": "580.126.20", "python": "3.12"}


@dataclass(frozen=True)
class Stack:
    """The versions of one deployment.

    `python` is the serving environment's, None for what the role takes by itself. `cuda_toolkit` and `nccl` are
    installed only where the inventory asks for them.
    """

    path: Path
    driver: str
    vllm: str
    ray: str
    uv: str
    huggingface_hub: str
    python: str | None = None
    cuda_toolkit: str | None = None
    nccl: str | None = None


REQUIRED = ("driver", "vllm", "ray", "uv", "huggingface_hub")
OPTIONAL = ("python", "cuda_toolkit", "nccl")


@dataclass(frozen=True)
class Lock:
    """A lock file as it stands: each version as written, its line, and all that is wrong."""

    path: Path
    versions: dict[str, str]
    lines: dict[str, int]
    problems: list[Problem]


def lock_path(inventory: Path) -> Path:
    """The lock file beside an inventory's hosts.yml, or the shipped one where there is none."""
    beside = (inventory if inventory.is_dir() else inventory.parent) / "stack.lock.yml"
    return beside if beside.is_file() else DEFAULT_LOCK


def load_stack(inventory: Path) -> Stack:
    """The versions that hold for an inventory.

    Raises InventoryError with every problem of the file.
    """
    lock = read_lock(lock_path(inventory))
    if lock.problems:
        raise InventoryError(lock.problems)
    return Stack(path=lock.path.resolve(), **lock.versions)


def read_lock(path: Path) -> Lock:
    """Read and check a lock file: its form first; the rules that tie versions to each other where that is sound."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        return Lock(path, {}, {}, [Problem(f"is not YAML: {error.problem}.", path, line)])
    versions, lines, problems = _versions(path, root)
    problems += [
        Problem(
            f"stack.{name} is {version or 'empty'}; expected an exact version such as {example}.", path, lines[name]
        )
        for name, version in versions.items()
        if (example := _inexact(name, version))
    ]
    problems += [
        Problem(f"stack.{name} is missing: every version of a deployment is pinned here.", path)
        for name in REQUIRED
        if name not in versions
    ]
    if not problems:
        problems = [Problem(each.message, path, lines.get(each.key), each.hint) for each in broken(versions)]
    return Lock(path, versions, lines, problems)


def vllm_arguments(version: str) -> frozenset[str] | None:
    """The long options of `vllm serve` of a version, without dashes; None if that version's list is not shipped."""
    path = ARGUMENTS / f"{version}.txt"
    return frozenset(path.read_text(encoding="utf-8").split()) if path.is_file() else None


def _versions(path: Path, root: yaml.Node | None) -> tuple[dict[str, str], dict[str, int], list[Problem]]:
    """Each version as written (YAML would make 2.60 the number 2.6), and its line."""
    versions: dict[str, str] = {}
    lines: dict[str, int] = {}
    problems = []
    entries = root.value if isinstance(root, yaml.MappingNode) else []
    stack = next((value for key, value in entries if key.value == "stack"), None)
    for key, _ in entries:
        if key.value != "stack":
            problems.append(
                Problem(f"{key.value} does not belong here: the file has one key, stack.", path, _line(key))
            )
    if not isinstance(stack, yaml.MappingNode):
        problems.append(Problem("has no mapping `stack` with the versions of the deployment.", path))
        return versions, lines, problems
    for key, value in stack.value:
        name = str(key.value)
        if name not in REQUIRED + OPTIONAL:
            near = difflib.get_close_matches(name, REQUIRED + OPTIONAL, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"It may name {', '.join(REQUIRED + OPTIONAL)}."
            problems.append(Problem(f"stack.{name} is not known.", path, _line(key), hint))
        else:
            versions[name] = str(value.value) if isinstance(value, yaml.ScalarNode) else ""
            lines[name] = _line(key)
    return versions, lines, problems


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _inexact(name: str, version: str) -> str:
    """An example of what was expected, if a version is not exact; else nothing."""
    form, example = OWN_FORM.get(name, (EXACT, EXAMPLES.get(name, "0.32.0")))
    return "" if form.fullmatch(version) else example
