"""How a look at a fleet reads: on a screen, since the last look, and as JSON."""

from __future__ import annotations

import re
import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from provision.cli.words import counted
from provision.converge.inputs import CODE
from provision.converge.stages import STAGES
from provision.drift import EFFECTS, Finding, StageReceipt
from provision.drift.look import HostLook, Spared

SHORT = 60  # characters that a value may have to be shown
HOST = "the host"  # what it is about when a host cannot be asked
PAIRS = 4  # lines of one finding that are told one by one
NAMED = 4  # names in a list
STAGE_WIDTH, EFFECT_WIDTH = max(map(len, STAGES)), max(map(len, EFFECTS))
COLOURS = {"none": "dim", "reload": "cyan", "restart": "yellow", "gpu_reset": "yellow", "reboot": "red"}
COSTS = {
    "none": "unnoticed",
    "reload": "by a reload",
    "restart": "by a restart",
    "gpu_reset": "by a reset of GPUs",
    "reboot": "by a reboot",
}


@dataclass(frozen=True)
class Rehearsal:
    """How the user named the fleet, for commands to type next."""

    inventory: Path
    lab: bool

    def command(self, verb: str, *flags: str) -> str:
        """A command on the same fleet."""
        words = ["provision", verb, str(self.inventory), *(["--lab"] if self.lab else []), *flags]
        return shlex.join(words)


def screen(looks: Sequence[HostLook], rehearsal: Rehearsal, seconds: float, heals: bool) -> list[str]:
    """The whole of one look, with rich's markup."""
    lines: list[str] = []
    for host in looks:
        lines += _host(host, rehearsal)
    return [*lines, *_inventory(looks, rehearsal), *_last(looks, rehearsal, seconds, heals)]


def _host(host: HostLook, rehearsal: Rehearsal) -> Iterator[str]:
    """A host that is not as it was left; one that is has no lines."""
    name = f"[bold]{escape(host.name)}[/]"
    told = host.receipts
    if told.trouble:
        colour = "yellow" if told.trouble.unreachable else "red"
        yield f"[bold {colour}]{escape(host.name)}[/]: {escape(told.trouble.message)}"
        yield f"  {escape(told.trouble.hint)}"
        return
    if not told.stages:
        yield f"{name}: never bootstrapped, so nothing is proved there."
        yield f"  {escape(rehearsal.command('bootstrap', '--limit', host.name))}"
        return
    if host.stands and not told.busy:
        return
    yield name
    if told.busy:
        yield f"  process {told.busy.pid} has been changing it since {told.busy.since}: {escape(told.busy.command)}"
    for stage in host.stages:
        yield from _stage(stage)
    if host.missing:
        yield f"  No run has finished {_some(host.missing)} there."


def _stage(receipt: StageReceipt) -> Iterator[str]:
    """All that is wrong with one stage of a host."""
    margin = " " * (STAGE_WIDTH + EFFECT_WIDTH + 4)
    for finding in receipt.findings:
        first, *more = sentences(finding)
        effect = f"[{COLOURS[finding.effect]}]{finding.effect:{EFFECT_WIDTH}}[/]"
        yield f"  {receipt.stage:{STAGE_WIDTH}} {effect} {escape(first)}"
        yield from (margin + escape(line) for line in more)
        if finding.who:
            yield f"{margin}[dim]{escape(finding.who)}[/]"
    if receipt.facts:
        yield f"  {receipt.stage:{STAGE_WIDTH}} {', '.join(receipt.facts)} is not what it was."
    if receipt.error:
        # What a unit's journal ends with may be a page of a program's own words; --json has it all.
        head, *rest = re.sub(r" The journal of \S+ ends with:$", "", receipt.error, flags=re.MULTILINE).splitlines()
        yield f"  {receipt.stage:{STAGE_WIDTH}} [red]{escape(head)}[/]"
        yield from (f"  {'':{STAGE_WIDTH}} {escape(line)}" for line in rest[-1:])


def sentences(finding: Finding) -> list[str]:
    """What differs, in a line or a few: the resource, what it is, and what it should be."""
    if not finding.resource:
        return [f"To be done: {finding.action}"]
    pairs = _pairs(finding.before, finding.after)
    if pairs is None:
        return [f"{finding.resource} {_differs(finding.before, finding.after)}."]
    if len(pairs) == 1 and not pairs[0][0]:
        return [f"{finding.resource} is {pairs[0][1]}, should be {pairs[0][2]}."]
    alike: dict[tuple[str, str], list[str]] = {}
    for label, before, after in pairs:
        alike.setdefault((before, after), []).append(label)
    lines = [f"{_labels(labels)} is {before}, should be {after}." for (before, after), labels in alike.items()]
    more = [f"and {len(lines) - PAIRS} more"] if len(lines) > PAIRS else []
    return [f"{finding.resource}: {lines[0]}", *lines[1:PAIRS], *more]


def _labels(labels: Sequence[str]) -> str:
    """What is alike, the common first word once: "GPU 0, 1, 2"."""
    words = [label.split(" ", 1) for label in labels]
    if len(labels) > 1 and all(len(word) > 1 and word[0] == words[0][0] for word in words):
        return f"{words[0][0]} {', '.join(word[1] for word in words)}"
    return ", ".join(labels)


def _pairs(before: str, after: str) -> list[tuple[str, str, str]] | None:
    """Label, value now and value wanted of each line, where both sides are lists of the same things."""
    old, new = before.splitlines(), after.splitlines()
    if not old or len(old) != len(new) or any(len(line) > SHORT for line in old + new):
        return None
    pairs = []
    for one, other in zip(old, new, strict=True):
        label, colon, value = one.partition(": ")
        if colon and other.startswith(f"{label}: "):
            pairs.append((label, value, other.partition(": ")[2]))
        elif len(old) == 1:
            pairs.append(("", one, other))
        else:
            return None
    return [pair for pair in pairs if pair[1] != pair[2]] or None


def _differs(before: str, after: str) -> str:
    """How a text differs, without showing it."""
    if not before:
        return "is missing"
    if not after:
        return "should not be there"
    old, new = Counter(before.splitlines()), Counter(after.splitlines())
    lost, foreign = (new - old).total(), (old - new).total()
    said = [f"{counted(lost, 'line')} missing"] if lost else []
    said += [f"{counted(foreign, 'line')} not ours"] if foreign else []
    return f"differs: {', '.join(said) or 'the order of its lines'}"


def _inventory(looks: Sequence[HostLook], rehearsal: Rehearsal) -> Iterator[str]:
    """What the receipts cannot know: that something else is wanted now."""
    plan = escape(rehearsal.command("plan"))
    changed = list(dict.fromkeys(name for host in looks for name in host.changed_inputs if name not in CODE))
    if changed:
        yield f"The inventory changed since ({_some(changed)}): {plan} shows what that means."
    elif any(host.changed_inputs for host in looks):
        yield f"provision itself changed since: {plan} shows what that means."


def _last(looks: Sequence[HostLook], rehearsal: Rehearsal, seconds: float, heals: bool) -> Iterator[str]:
    verified = [host for host in looks if not host.receipts.trouble]
    drifted = [host for host in verified if not host.stands]
    gone = len(looks) - len(verified)
    said = f"{counted(len(verified), 'host')} verified in {seconds:.1f} s"
    lost = f", {gone} not" if gone else ""
    if not drifted:
        yield f"{said}{lost}: nothing differs from what the last bootstrap left." if verified else f"{said}{lost}."
        return
    effects = Counter(finding.effect for host in drifted for finding in host.findings)
    costs = ", ".join(f"{effects[name]} {COSTS[name]}" for name in EFFECTS if effects[name])
    things = f". {counted(effects.total(), 'thing')} to repair: {costs}" if effects else ""
    yield f"{said}{lost}; {counted(len(drifted), 'host')} not as the last bootstrap left them{things}."
    if not heals:
        quiet = sum(effects[name] for name in ("none", "reload"))
        if quiet:
            yield f"Repair what nobody notices:  {escape(rehearsal.command('drift', '--heal'))}"
        yield f"Repair all:                  {escape(rehearsal.command('bootstrap'))}"


def changes_since(before: Sequence[HostLook], now: Sequence[HostLook]) -> list[str]:
    """What is new or gone since the last look, each line with the time."""
    clock = time.strftime("%H:%M:%S")
    old = {host.name: _state(host) for host in before}
    lines = []
    for host in now:
        was, is_now = old.get(host.name, {}), _state(host)
        lines += [f"{clock} {escape(f'{host.name}: {text}')}" for key, text in is_now.items() if key not in was]
        gone = [key for key in was if key not in is_now]
        # Of a host that fell silent nothing is known: what it said before is neither there nor gone.
        if not host.receipts.trouble:
            again = ["it answers again." if key == HOST else escape(f"{key} is as it should be again.") for key in gone]
            lines += [f"{clock} {escape(host.name)}: [green]{sentence}[/]" for sentence in again]
    return lines


def _state(host: HostLook) -> dict[str, str]:
    """All that is wrong with a host, by what it is about."""
    if host.receipts.trouble:
        return {HOST: host.receipts.trouble.message}
    found = {}
    for finding in host.findings:
        who = f" {finding.who}" if finding.who else ""
        found[finding.resource or finding.action] = f"{' '.join(sentences(finding))}{who} (repair: {finding.effect})"
    for stage in host.stages:
        if stage.error:
            found[f"{stage.stage}"] = stage.error
        found.update({f"{stage.stage}: {fact}": f"{stage.stage}: {fact} is not what it was." for fact in stage.facts})
    if host.missing:
        found["bootstrap"] = f"no run has finished {_some(host.missing)} there."
    return found


def document(
    looks: Sequence[HostLook],
    seconds: float,
    healed: Mapping[str, Sequence[str]] | None = None,
    spared: Sequence[Spared] = (),
) -> dict[str, Any]:
    """One look as docs/drift.md describes it."""
    found: dict[str, Any] = {
        "version": 1,
        "seconds": round(seconds, 3),
        "stands": all(host.stands for host in looks),
        "hosts": [_host_document(host) for host in looks],
    }
    if healed is not None:
        found["healed"] = {host: list(stages) for host, stages in healed.items()}
        found["left_alone"] = [asdict(one) for one in spared]
    return found


def _host_document(host: HostLook) -> dict[str, Any]:
    told = host.receipts
    trouble = told.trouble
    return {
        "name": host.name,
        "reachable": not host.unreachable,
        "error": trouble.message if trouble else None,
        "hint": trouble.hint if trouble else None,
        "stands": host.stands,
        "missing": list(host.missing),
        "changed_inputs": {stage: list(names) for stage, names in (host.outdated or {}).items()},
        "busy": asdict(told.busy) if told.busy else None,
        "at_work": list(told.at_work),
        "boot_id": told.boot_id or None,
        "serving": told.serving,
        "kv_tokens": told.kv_tokens,
        "stages": [
            {
                "stage": stage.stage,
                "stands": stage.stands,
                "sealed": stage.sealed,
                "error": stage.error,
                "facts": list(stage.facts),
                "findings": [
                    {name: value for name, value in asdict(finding).items() if name != "stage"}
                    for finding in stage.findings
                ],
            }
            for stage in host.stages
        ],
    }


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return escape(", ".join(names[:NAMED])) + more
