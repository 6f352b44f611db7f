"""What a run came to, for a person: what changed where, what failed and what to do; nothing else."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from provision.cli.words import counted
from provision.converge import STAGES, Change, HostResult, Result
from provision.converge.result import CANARY, INTERRUPT, Difference
from provision.inventory import Fleet, simulated

SHORT = 72  # characters that a before and after may have to be shown in one line
PER_STAGE = 8  # lines; a first run changes hundreds of things, and events.jsonl holds them all
NAMED = 4  # hosts that are listed by name
ARROW = "\N{RIGHTWARDS ARROW}"


def show(result: Result, fleet: Fleet, inventory: Path, full: bool, command: str = "") -> None:
    """Print the summary on standard output; `full` adds what changed inside files, `command` would do it once more."""
    console = Console(soft_wrap=True, highlight=False)
    for line in summary(result, fleet, inventory, full, command):
        console.print(line)


def summary(result: Result, fleet: Fleet, inventory: Path, full: bool = False, command: str = "") -> Iterator[str]:
    """The lines of the summary, with rich's markup."""
    hosts = list(result.hosts.values())
    command = command or f"provision bootstrap {inventory}{_lab(fleet)}"
    yield from _changes(hosts, full)
    yield from _failures(hosts)
    if result.error:
        yield f"[red]The run broke off.[/]\n{_indented(result.error)}"
    yield from _interrupted(result)
    if result.trouble:
        yield f"[yellow]The journal of this run is not whole:[/] {escape(result.trouble)}"
    yield from _waiting(result, fleet, inventory)
    yield from _out(result, fleet, inventory)
    yield from _ways(result, fleet, inventory, command)
    yield from _canary(result, fleet, inventory, command)
    yield from _last(result, fleet, command)


def _changes(hosts: list[HostResult], full: bool) -> Iterator[str]:
    """What changed on the same hosts stands once, under their names; what most have in common comes first."""
    who: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for host in hosts:
        for change in host.changes:
            for piece in _pieces(change, full):
                names = who.setdefault((change.stage, piece), [])
                names += [] if host.name in names else [host.name]
    blocks: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for (stage, piece), names in who.items():
        blocks.setdefault(tuple(names), {}).setdefault(stage, []).extend(piece)
    for together, stages in sorted(blocks.items(), key=lambda block: -len(block[0])):
        yield f"[bold]{escape(_named(together, len(hosts)))}[/]"
        yield from _stage_lines(stages, full)
        yield ""


def _stage_lines(stages: dict[str, list[str]], full: bool) -> Iterator[str]:
    for stage in sorted(stages, key=STAGES.index):
        lines = stages[stage]
        shown = lines if full or len(lines) <= PER_STAGE else lines[: PER_STAGE - 1]
        for position, line in enumerate(shown):
            yield f"  [cyan]{stage if position == 0 else '':<12}[/]{line}"
        if len(shown) < len(lines):
            yield f"  {'':<12}[dim]and {len(lines) - len(shown)} more[/]"


def _named(names: tuple[str, ...], total: int) -> str:
    if len(names) <= NAMED:
        return ", ".join(names)
    if len(names) == total:
        return f"all {total} hosts"
    return f"{', '.join(names[: NAMED - 1])} and {len(names) - NAMED + 1} more"


def _pieces(change: Change, full: bool) -> Iterator[tuple[str, ...]]:
    """What is told of a change: each sentence by itself, or in full all of it together."""
    lines = list(_change_lines(change))
    if full:
        details = [difference for difference in change.differences if change.actions or not _is_short(difference)]
        lines += [f"[dim]{escape(line)}[/]" for difference in details for line in _unified(difference)]
        yield tuple(lines)
    else:
        yield from ((line,) for line in lines)


def _change_lines(change: Change) -> Iterator[str]:
    if change.actions:
        yield from (escape(action) for action in change.actions)
    elif change.differences:
        yield from (_one_line(difference, change) for difference in change.differences)
    else:
        yield escape(change.task)


def _one_line(difference: Difference, change: Change) -> str:
    before, after = difference.before.strip(), difference.after.strip()
    name = escape(difference.resource or change.task)
    if _is_short(difference):
        return f"{name}  {escape(before) or 'absent'} {ARROW} {escape(after) or 'absent'}"
    if not before or not after:
        return f"{name}  {'written' if after else 'removed'}"
    lines = list(difflib.ndiff(before.splitlines(), after.splitlines()))
    plus, minus = (sum(line.startswith(sign) for line in lines) for sign in "+-")
    return f"{name}  +{plus} -{minus} lines"


def _is_short(difference: Difference) -> bool:
    both = difference.before.strip() + difference.after.strip()
    return "\n" not in both and len(both) <= SHORT


def _unified(difference: Difference) -> Iterator[str]:
    lines = difflib.unified_diff(
        difference.before.splitlines(),
        difference.after.splitlines(),
        difference.resource,
        difference.resource,
        lineterm="",
        n=1,
    )
    yield from (f"  {line}" for line in lines)


def _failures(hosts: list[HostResult]) -> Iterator[str]:
    for host in hosts:
        failure = host.failure
        if failure:
            colour = "yellow" if failure.unreachable else "red"
            head, *more = failure.message.splitlines() or [""]
            where = "" if failure.stage == "reach" else f"{failure.stage}: {failure.task}: "
            yield f"[bold {colour}]{escape(host.name)}[/]: {escape(where + head)}"
            yield from (f"  {escape(line)}" for line in more)
            yield from (f"  {escape(line)}" for line in (failure.hint or "").splitlines())
    waiting: dict[tuple[str | None, tuple[str, ...]], list[str]] = {}
    for host in hosts:
        if host.held_back:
            waiting.setdefault((host.because, host.held_back), []).append(host.name)
    for (because, stages), names in waiting.items():
        yield f"{escape(', '.join(names))}: {', '.join(stages)} not run, since {because} of the same replica failed."
    spared: dict[str, list[str]] = {}
    for host in hosts:
        if host.spared:
            spared.setdefault(host.spared, []).append(host.name)
    for because, names in spared.items():
        own = {INTERRUPT: "the run was stopped", CANARY: "they wait for what the canary shows"}
        first = own.get(because, f"{escape(because)} failed in an earlier wave")
        yield f"{escape(_named(tuple(names), len(hosts)))}: not touched, since {first}."


def _interrupted(result: Result) -> Iterator[str]:
    if not result.interrupted:
        return
    yield f"[yellow]Interrupted after {_time(result.seconds)}.[/]"
    for host, (stage, task) in result.running.items():
        yield f"  {escape(host)} was in {stage}: {escape(task)}"
    if result.running:
        yield "  What had started on a host runs to its end there; the next run waits for it."
    yield "  Go on where it stands:  provision resume"


def _waiting(result: Result, fleet: Fleet, inventory: Path) -> Iterator[str]:
    """The reboots that were not made, since the plan did not name them."""
    who: dict[tuple[str, ...], list[str]] = {}
    for host in result.hosts.values():
        if host.waits:
            who.setdefault(host.waits, []).append(host.name)
    for reasons, names in who.items():
        named = escape(_named(tuple(names), len(result.hosts)))
        yield f"[yellow]{named}: a reboot waits that the plan did not name:[/] {escape('; '.join(reasons))}."
    if who:
        yield f"  The next plan names it:  provision plan {escape(str(inventory))}{_lab(fleet)}"


def _out(result: Result, fleet: Fleet, inventory: Path) -> Iterator[str]:
    """The replicas that an earlier run drained, and that this one had no reason to trust."""
    found = False
    for replica in fleet.replicas:
        by = next((told.stays_out for host in replica.hosts if (told := result.hosts.get(host.name))), "")
        found = found or bool(by)
        if by:
            why = f"{by} drained it, and not all of it stands."
            yield f"[yellow]{escape(replica.name)} stays out of rotation:[/] {escape(why)}"
    if found:
        yield f"  To bring it back:  provision bootstrap {escape(str(inventory))}{_lab(fleet)}"


def _ways(result: Result, fleet: Fleet, inventory: Path, command: str) -> Iterator[str]:
    """How to go on, and how to go back, after a replica failed before others were to be changed in the same way."""
    culprits = {host.spared for host in result.hosts.values()} & result.hosts.keys()
    for replica in fleet.replicas:
        if any(host.name in culprits for host in replica.hosts):
            yield f"  Go on, once it is mended:  {escape(command)}"
            yield f"  Back to what it served:    {_rollback(fleet, inventory, replica.name)}"


def _rollback(fleet: Fleet, inventory: Path, replica: str) -> str:
    return escape(f"provision serve rollback {inventory} {replica}{_lab(fleet)}")


def _canary(result: Result, fleet: Fleet, inventory: Path, command: str) -> Iterator[str]:
    if not result.canary:
        return
    yield f"[bold]{escape(result.canary)} is changed and serves. The other replicas are as they were.[/]"
    yield f"  Go on with the others:  {escape(command)}"
    yield f"  Back:                   {_rollback(fleet, inventory, result.canary)}"


def _last(result: Result, fleet: Fleet, command: str) -> Iterator[str]:
    hosts = list(result.hosts.values())
    changes = sum(len(list(_change_lines(change))) for host in hosts for change in host.changes)
    bad = [host for host in hosts if host.failure]
    if not (changes or bad or result.error or result.interrupted):
        verified = f"{counted(len(hosts), 'host')} verified in {_time(result.seconds)}"
        yield f"{verified}: nothing to change.{_answers(result, fleet)}"
        return
    would = "pending, nothing was done" if result.check else "made"
    said = [f"{counted(changes, 'change')} {would}" if changes else "nothing changed"]
    for status, word in (("failed", "failed"), ("unreachable", "unreachable"), ("held_back", "held back")):
        count = sum(host.status == status for host in hosts)
        said += [f"{count} {word}"] if count else []
    if not (result.error or result.interrupted):
        yield f"{counted(len(hosts), 'host')}: {', '.join(said)}, in {_time(result.seconds)}.{_answers(result, fleet)}"
    if result.check and changes and not bad:
        yield f"Apply them:  {escape(command)}"
    if bad or result.error or result.interrupted:
        yield f"Log: {result.log if result.log.stat().st_size else result.directory}"


def _answers(result: Result, fleet: Fleet) -> str:
    """Which replicas generated tokens at the end, and how fast."""
    times = {}
    for replica in fleet.replicas:
        host = result.hosts.get(replica.head.name)
        if host and host.answer:
            times[replica.name] = f"{host.answer.tokens} tokens in {host.answer.milliseconds} ms"
    if not times:
        return ""
    names = _named(tuple(times), len(times)).replace("hosts", "replicas")
    return f" {escape(names)} answer{'s' if len(times) == 1 else ''} ({', '.join(list(times.values())[:NAMED])})."


def _lab(fleet: Fleet) -> str:
    """The option of a command where simulated hosts stand for a real inventory: without it, it touches real ones."""
    return " --lab" if len(fleet.sources) > 1 and not simulated(fleet.path) else ""


def _indented(text: str) -> str:
    return "\n".join(f"  {escape(line)}" for line in text.splitlines())


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
