"""Verifies the steps of receipts: each step's own module runs in check mode, and tells what it would change.

And mends them: the same module, with the same parameters, not in check mode.
"""

# ruff: noqa: ANN401 - results and parameters of modules are any JSON

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ansible.module_utils import basic, provision_host

HARMLESS = ("none", "reload")  # effects that nobody who is served notices
LIBRARY = "provision_library"  # the package of the roles' modules, beside this one
SAID_BY_ALL = {"failed", "changed", "actions", "diff", "effects", "msg", "warnings", "invocation", "rc", "skipped"}
VOLATILE = {"latency_ms", "tokens", "waited_s", "loaded", "pending", "nodes"}


class Look(NamedTuple):
    """How a module is asked that waits for something and changes nothing: for real, and without patience."""

    params: Mapping[str, Any]
    constants: Mapping[str, Any]


LOOKS = {
    "nvidia_ready": Look({"timeout": 0}, {}),
    "ray_cluster": Look({"timeout": 0}, {}),
    "vllm_canary": Look({"timeout": 20}, {"ANSWER_S": 20, "ATTEMPTS": 1}),
}


@dataclass
class Verdict:
    """What verifying the steps of one stage found."""

    changes: list[dict[str, Any]] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)
    error: str | None = None
    answer: dict[str, int] | None = None


class _Recorder(provision_host.Outcome):  # type: ignore[misc]  # part of the bundle
    """Keeps each change as a module tells it, with the step's own before and after."""

    kept: list[Any] = []  # noqa: RUF012 - emptied before each step

    def add(self, change: Any) -> None:
        super().add(change)
        self.kept.append(change)


def prepare(mends: bool = False) -> None:
    """Have the modules' shared code look once, and leave out what was settled when the receipt was made.

    Where something may be changed in between (`mends`), one answer is no answer to the next question.
    """
    _import_late("urllib", "request")
    provision_host.Outcome = _Recorder
    if not mends:
        provision_host.run = remembering(provision_host.run)
    # From here on, since what imports `run` keeps the one that it finds.
    units = importlib.import_module("ansible.module_utils.provision_units")
    # systemd has read these very texts before they were put in place; to have it read them again takes half a second.
    vars(units)["verify"] = lambda _units, _check_mode: None


def ask_together(steps: Iterable[dict[str, Any]]) -> None:
    """Have systemd asked once for the units of all these steps, which are only verified."""
    units = importlib.import_module("ansible.module_utils.provision_units")
    listed = (step["params"]["units"] for step in steps if step["module"] == "systemd_units")
    units.TOGETHER[:] = sorted({unit["name"] for listing in listed for unit in listing})


def hold() -> None:
    """The host's lock is held from here on: the modules that run now need not take it, and could not."""
    provision_host.host_lock = lambda *_what, **_how: contextlib.nullcontext()


class _Late(types.ModuleType):
    """Stands for a module until something of it is used: to load it costs more than most steps, which never use it."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        real = importlib.import_module(self.__name__)
        self.__dict__.update(vars(real))
        return getattr(real, name)


def _import_late(package: str, name: str) -> None:
    """Have `import PACKAGE.NAME` cost nothing by itself."""
    if f"{package}.{name}" not in sys.modules:
        late = sys.modules[f"{package}.{name}"] = _Late(f"{package}.{name}")
        setattr(importlib.import_module(package), name, late)


def remembering(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` that answers what it was asked before from memory: nothing changes while receipts are verified.

    Who sleeps between two looks wants to see something new, so a sleep empties the memory.
    """
    known: dict[Any, Any] = {}
    sleep = time.sleep

    def forget(seconds: float) -> None:
        known.clear()
        sleep(seconds)

    def once(argv: Any, *, check: bool = True, env: Any = None, stdin: str = "", **more: Any) -> Any:
        key = (tuple(argv), check, tuple(sorted((env or {}).items())), stdin)
        if key not in known:
            try:
                known[key] = run(argv, check=check, env=env, stdin=stdin, **more)
            except provision_host.HostError as error:
                known[key] = error
        if isinstance(known[key], provision_host.HostError):
            raise known[key]
        return known[key]

    vars(time)["sleep"] = forget
    return once


@dataclass
class Mended:
    """What one module changed in order to set its step right, in the words in which it tells that to Ansible."""

    module: str
    changes: list[dict[str, Any]]
    seconds: float
    error: str | None = None


def mend(steps: list[dict[str, Any]]) -> list[Mended]:
    """Perform, in order, each step that differs, if nobody notices that; up to the first that cannot be performed.

    A step that differs in anything that somebody notices is left as it is, and so are those after it.
    """
    done: list[Mended] = []
    for step in steps:
        verdict = verify([step], frozenset())
        if verdict.error or any(change["effect"] not in HARMLESS for change in verdict.changes):
            break
        if verdict.changes:
            begin = time.monotonic()
            error = _run(step["module"], step, follow=False, check_mode=False)
            done.append(Mended(step["module"], _told(step["module"]), round(time.monotonic() - begin, 3), error))
            if error:
                break
    return done


def verify(steps: list[dict[str, Any]], skip: frozenset[str], follow: bool = False) -> Verdict:
    """Verify a stage's steps in order; of those that cannot be verified, the first says why.

    With `follow` a branch of weights is looked up anew; else it is the commit that it was when the receipt was made.
    """
    verdict = Verdict()
    for step in steps:
        if step["module"] not in skip:
            _verify(step, verdict, follow)
    return verdict


def _verify(step: dict[str, Any], verdict: Verdict, follow: bool) -> None:
    name = step["module"]
    error = _run(name, step, follow)
    verdict.error = verdict.error or error
    result = basic.Step.result
    verdict.changes += _told(name)
    if "latency_ms" in result and "tokens" in result:
        verdict.answer = {"tokens": int(result["tokens"]), "latency_ms": int(result["latency_ms"])}
    if not result.get("failed"):
        verdict.facts += [fact for fact in _differing(step.get("facts") or {}, result) if fact not in verdict.facts]


def _told(name: str) -> list[dict[str, Any]]:
    """The changes that the module has told, each with its effect; without secrets."""
    result, changes = basic.Step.result, []
    effects = {str(action): str(effect) for action, effect in zip(result.get("actions", ()), result.get("effects", ()))}  # noqa: B905  Python 3.9
    for change in _Recorder.kept:
        told = {
            "module": name,
            "action": change.action,
            "resource": change.header,
            "before": change.before,
            "after": change.after,
            "who": None,
            "effect": getattr(change, "effect", None) or effects.get(change.action, "restart"),
        }
        changes.append(basic.masked(told, basic.Step.secrets))
    return changes


def _run(name: str, step: dict[str, Any], follow: bool, check_mode: bool = True) -> str | None:
    """Run the module; what is wrong if it could not do what it was asked."""
    look = LOOKS.get(name)
    params = dict(step["params"])
    if name == "model_weights" and not follow and (step.get("facts") or {}).get("commit"):
        params["revision"] = step["facts"]["commit"]  # what a branch meant when the receipt was made, without the hub
    basic.Step.module = name
    basic.Step.params = {**params, **look.params} if look else params
    basic.Step.check_mode, basic.Step.result, basic.Step.secrets = check_mode and look is None, {}, ()
    _Recorder.kept.clear()
    try:
        module = importlib.import_module(f"{LIBRARY}.{name}")
    except ImportError:
        return f"The receipt holds a step of {name}, which this version does not have: bootstrap again."
    for constant, value in look.constants.items() if look else ():
        setattr(module, constant, value)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            module.main()
    except SystemExit:
        return str(basic.Step.result["msg"]) if basic.Step.result.get("failed") else None
    except Exception as error:  # noqa: BLE001 - it is this stage's trouble alone
        said = " ".join(str(error).split()) or "no word"
        crash = f"{name} could not be {'verified' if check_mode else 'performed'}: {type(error).__name__}: {said}"
        return str(basic.masked(crash, basic.Step.secrets))
    return f"{name} ended without a result."


def _differing(sealed: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """The facts that are not what they were when the receipt was made."""
    for name in sorted(set(sealed) | set(now)):
        if name not in VOLATILE | SAID_BY_ALL and sealed.get(name) != now.get(name):
            yield name
