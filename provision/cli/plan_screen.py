"""A plan on a screen: by replica, then host, then change; what is the same stands once."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.markup import escape

from provision.cli.words import counted
from provision.inventory import Fleet
from provision.plan.make import Planning
from provision.plan.model import EFFECTS, Capacity, Plan, PlannedChange, Wave

SHORT = 56  # characters that a before and after may have to stand in one line
MINUTES = 90  # seconds from which on minutes are told
WIDE = 64  # columns of a sentence
LONGEST_REASON = 96  # columns; who did something by hand may be told with a whole command
PER_HOST = 12  # lines; the plan's file and --diff have all
NAMED = 3
ARROW = "\N{RIGHTWARDS ARROW}"
LABELS = {"none": "-", "gpu_reset": "gpu reset"}
COLOURS = {"none": "dim", "reload": "cyan", "restart": "yellow", "gpu_reset": "red", "reboot": "red"}


@dataclass(frozen=True)
class Row:
    """One line: a change, or several that another host has as well.

    `name` is the resource's, with its `values`; or, without those, a sentence.
    """

    effect: str
    name: str
    values: str
    reason: str
    resource: str = ""
    stage: str = ""
    more: tuple[str, ...] = ()

    def what(self, width: int) -> str:
        """What changes, with the values of all in one column."""
        return f"{self.name:<{width}}  {self.values}" if self.values else self.name


def screen(planning: Planning, fleet: Fleet, *, seconds: float, full: bool = False) -> Iterator[str]:
    """The lines of the screen, with rich's markup; `full` adds what changes inside files, and cuts nothing."""
    plan = planning.plan
    if not plan.changes and planning.whole:
        yield _nothing(plan, seconds)
        return
    blocks: dict[tuple[object, ...], list[str]] = {}
    members = {item.name: [host.name for host in item.hosts if host.name in plan.hosts] for item in fleet.replicas}
    for replica in fleet.replicas:
        if hosts := members[replica.name]:
            rows = tuple(tuple(_rows(plan.changes.get(host, ()), full)) for host in hosts)
            troubled = tuple(host for host in hosts if _trouble(planning, host))
            is_out = any(replica.name in wave.out for wave in plan.waves)
            is_visited = any(host in plan.visits for host in hosts)
            alike = (rows, troubled, is_out, is_visited, replica.name in plan.now.replicas)
            blocks.setdefault(alike, []).append(replica.name)
    for names in blocks.values():
        groups = [members[name] for name in names]
        yield f"[bold]{escape(_named(names))}[/]   {escape(_heading(planning, names, groups))}"
        yield from _hosts(planning, groups, full)
    yield from _gateways(planning, fleet, full)
    yield from _not_whole(planning)
    yield _footer(plan)


def _gateways(planning: Planning, fleet: Fleet, full: bool) -> Iterator[str]:
    """The gateways that do not serve themselves. What is changed there takes no replica out of rotation."""
    names = [host.name for host in fleet.gateways if fleet.replica_of(host.name) is None]
    names = [name for name in names if name in planning.plan.hosts]
    if names:
        changes = any(name in planning.plan.changes for name in names)
        heading = "takes no replica out of rotation" if changes else _heading(planning, (), [names])
        yield f"[bold]gateway[/]   {escape(heading)}"
        yield from _hosts(planning, [names], full)


def _not_whole(planning: Planning) -> Iterator[str]:
    """Why a prediction says nothing of some hosts, where none of them is the cause."""
    prediction = planning.prediction
    if prediction and (prediction.error or prediction.interrupted):
        why = prediction.error or "it was interrupted"
        yield f"[yellow]The plan is not whole:[/] {escape(why)}\n  Log: {escape(str(prediction.log))}"


def _nothing(plan: Plan, seconds: float) -> str:
    verified = f"{counted(len(plan.hosts), 'host')} verified in {seconds:.1f} s: nothing to change."
    visits = [f"{visit.stage} on {host}" for host, own in plan.visits.items() for visit in own]
    out = [name for wave in plan.waves for name in wave.out]
    turns = ", one after another" if len(out) > 1 else ""
    leave = f"; {escape(_named(out))} would leave rotation for it{turns}" if out else ""
    return f"{verified} A run would look again at {escape(_named(visits))}{leave}." if visits else verified


def _heading(planning: Planning, names: Sequence[str], groups: Sequence[Sequence[str]]) -> str:
    """What a replica goes through: whether and when it leaves rotation, for how long, and what serves meanwhile."""
    plan, everyone = planning.plan, [name for group in groups for name in group]
    if any(_trouble(planning, host) for host in everyone):
        return "cannot be planned as a whole"
    mine = [(number, wave) for number, wave in enumerate(plan.waves, 1) if {*wave.hosts} & {*everyone}]
    out = [(number, wave) for number, wave in mine if {*wave.out} & {*names}]
    changes = any(host in plan.changes for host in everyone)
    if not (changes or out):
        return "nothing would change" if any(host in plan.visits for host in everyone) else "nothing to do"
    said = [] if changes else ["nothing would change"]
    if out:
        numbers = [number for number, _ in out]
        which = f"wave {numbers[0]}" if len(numbers) == 1 else f"waves {numbers[0]} to {numbers[-1]}, one after another"
        said.append(f"out of rotation once ({which} of {len(plan.waves)})")
    else:
        said.append("stays in rotation" if {*names} <= {*plan.now.replicas} else "not in rotation now")
    times = {_minutes(wave.seconds) for _, wave in mine}
    said += [f"about {times.pop()}"] if len(times) == 1 and None not in times else []
    said += [f"capacity meanwhile {_capacity(plan, _least([wave for _, wave in out]))}"] if out else []
    return " · ".join(said)


def _hosts(planning: Planning, groups: Sequence[Sequence[str]], full: bool) -> Iterator[str]:
    """The hosts of a replica, and of those that are planned just so; hosts alike stand together."""
    entries: dict[tuple[Row, ...], list[str]] = {}
    for position, host in enumerate(groups[0]):
        alike = [group[position] for group in groups]
        rows = tuple(_rows(planning.plan.changes.get(host, ()), full))
        if trouble := _trouble(planning, host):
            yield f"  [bold]{escape(_named(alike))}[/]  [yellow]{escape(trouble)}[/]"
        if rows:
            entries.setdefault(rows, []).extend(alike)
    order = planning.plan.hosts.index
    named = {rows: _named(sorted(names, key=order)) for rows, names in entries.items()}
    shown = {rows: tuple(_folded(rows, list(entries)[:number])) for number, rows in enumerate(entries)}
    everything = [row for rows in shown.values() for row in rows]
    names = max((len(row.name) for row in everything if row.values), default=0)
    widths = (
        max((len(name) for name in named.values()), default=0),
        names,
        max((len(row.what(names)) for row in everything), default=0),
    )
    for key, rows in shown.items():
        yield from _table(named[key], rows, widths, full)


def _folded(rows: Sequence[Row], above: Sequence[Sequence[Row]]) -> Iterator[Row]:
    """The rows of a host; those that a host above it has too become one."""
    known = {row for others in above for row in others}
    same = [row for row in rows if row in known]
    if same:
        effect = max((row.effect for row in same), key=EFFECTS.index)
        yield Row(effect, _cut(_named([row.resource for row in same])), "", "as above")
    yield from (row for row in rows if row not in known)


def _table(name: str, rows: Sequence[Row], widths: tuple[int, int, int], full: bool) -> Iterator[str]:
    shown = rows if full or len(rows) <= PER_HOST else rows[: PER_HOST - 1]
    reason = ""
    for position, row in enumerate(shown):
        head = f"[bold]{escape(f'{name:<{widths[0]}}')}[/]" if position == 0 else " " * widths[0]
        label = f"[{COLOURS[row.effect]}]{LABELS.get(row.effect, row.effect):<9}[/]"
        why = "" if row.reason == reason else row.reason if full else _cut(row.reason, LONGEST_REASON)
        text = row.what(widths[1])
        text = f"{text:<{widths[2]}}" if why else text
        yield f"  {head}  {label} {escape(text)}" + (f"  [dim]{escape(why)}[/]" if why else "")
        yield from (f"  {'':<{widths[0]}}            [dim]{escape(line)}[/]" for line in row.more)
        reason = row.reason
    if len(shown) < len(rows):
        left = Counter(row.stage for row in rows[len(shown) :])
        stages = ", ".join(f"{stage} {count}" for stage, count in left.items())
        yield f"  {'':<{widths[0]}}  {'':<9} [dim]and {len(rows) - len(shown)} more ({stages}); all of them: --diff[/]"


def _rows(changes: tuple[PlannedChange, ...], full: bool) -> list[Row]:
    """The changes of a host, what disturbs most first."""
    ordered = sorted(changes, key=lambda change: -EFFECTS.index(change.effect))
    return [_row(change, full) for change in ordered]


def _row(change: PlannedChange, full: bool) -> Row:
    is_short = bool(change.resource) and _is_short(change)
    name, values = change.resource, f"{change.before or 'absent'} {ARROW} {change.after or 'absent'}"
    if not is_short:
        name, values = change.action, ""
        if change.before and change.after:
            lines = list(difflib.ndiff(change.before.splitlines(), change.after.splitlines()))
            plus, minus = (sum(line.startswith(f"{sign} ") for line in lines) for sign in "+-")
            name = f"{name}  +{plus} -{minus} lines"
        name = name if full else _cut(name)
    more = tuple(_unified(change)) if full and not is_short else ()
    return Row(change.effect, name, values, change.reason.text, change.resource or change.action, change.stage, more)


def _cut(text: str, width: int = WIDE) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _is_short(change: PlannedChange) -> bool:
    both = change.before + change.after
    return bool(both) and "\n" not in both and len(both) + len(change.resource) <= SHORT


def _unified(change: PlannedChange) -> Iterator[str]:
    sides = (change.before.splitlines(), change.after.splitlines())
    yield from difflib.unified_diff(*sides, change.resource, change.resource, lineterm="", n=1)


def _footer(plan: Plan) -> str:
    if not plan.changes:
        return "No change is known."
    reboots = [counted(len(plan.rebooted), "reboot")] if plan.rebooted else []
    said = [f"{counted(len(plan.changes), 'host')} change{'s' if len(plan.changes) == 1 else ''}", *reboots]
    said.append(counted(len(plan.waves), "wave"))
    out = [wave for wave in plan.waves if wave.out]
    if out:
        said.append(f"never fewer than {_capacity(plan, _least(out))}")
    elif plan.now.replicas:
        said.append("no replica leaves rotation")
    else:
        said.append("no replica serves now")
    minutes = _minutes(plan.seconds)
    said.append(f"about {minutes}" if minutes else "no run to estimate the time from")
    return escape(" · ".join(said))


def _capacity(plan: Plan, left: Capacity) -> str:
    replicas = f"{len(left.replicas)} of {counted(len(plan.replicas), 'replica')}"
    unknown = f", {_named(plan.unknown)} not known" if plan.unknown else ""
    if not left.replicas:
        return replicas + unknown
    tokens = "unknown" if left.kv_tokens is None else f"{left.kv_tokens:,} tokens"
    return f"{replicas}{unknown} (KV memory: {tokens})"


def _least(waves: Sequence[Wave]) -> Capacity:
    return min((wave.left for wave in waves), key=lambda left: len(left.replicas))


def _trouble(planning: Planning, host: str) -> str | None:
    trouble = planning.troubles.get(host)
    if trouble:
        return f"{trouble.message}  {trouble.hint}".strip()
    told = planning.prediction.hosts.get(host) if planning.prediction else None
    if told and told.failure:
        return f"cannot be foretold: {told.failure.stage}: {told.failure.task}: {told.failure.message}"
    return None


def _minutes(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{round(seconds)} s" if seconds < MINUTES else f"{round(seconds / 60)} min"


def _named(names: Sequence[str]) -> str:
    names = list(dict.fromkeys(names))
    if len(names) <= NAMED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
