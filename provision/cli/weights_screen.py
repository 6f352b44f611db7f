"""How the weights of a fleet read: a line for each host, and what was done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from provision.cli.words import counted
from provision.weights.ask import Told

GB = 1e9
SILENT_S = 30  # after which who fetches is not at work any more: it says twice a second how far it is
MINUTE, HOUR = 60, 3600


@dataclass(frozen=True)
class Row:
    """One host's part in a transfer."""

    name: str
    gone: bool
    failed: str
    commit: str = ""
    current: str = ""
    whole: bool = False
    fetches: bool = False
    bytes: int = 0
    total: int = 0
    rate: int = 0
    eta: int | None = None
    source: str = ""
    reason: str = ""
    free: int = 0

    def document(self) -> dict[str, Any]:
        """As docs/weights.md describes it."""
        return asdict(self)


def row(told: Told) -> Row:
    """What a host said, in short."""
    if told.why:
        return Row(told.host.name, told.is_gone, "" if told.is_gone else told.why)
    facts, state = told.facts, told.facts["state"]
    mine = state if state.get("commit") == facts["commit"] else {}
    there = next((each for each in facts["commits"] if each["commit"] == facts["commit"]), None)
    is_old = facts["now"] - mine.get("time", 0) > SILENT_S  # it was stopped, or cannot write how far it is
    fetches = bool(mine) and not (mine.get("done") or mine.get("failed") or is_old)
    sources = mine.get("sources") or {}
    return Row(
        told.host.name,
        gone=False,
        failed=str(mine.get("failed") or ""),
        commit=facts["commit"],
        current=facts["current"],
        whole=bool(there and there["whole"]),
        fetches=fetches,
        bytes=mine["bytes"] if fetches else (there["here"] if there else 0),
        total=mine.get("total") or (there["bytes"] if there else 0),
        rate=mine["rate"] if fetches else 0,
        eta=mine["eta"] if fetches else None,
        source=max(sources, key=sources.__getitem__) if fetches and sources else "",
        reason=mine["reason"] if fetches else "",
        free=facts["free"],
    )


def table(rows: Sequence[Row]) -> Table:
    """All hosts, a line each."""
    shown = Table(box=None, pad_edge=False)
    for head in ("host", "commit", "here", "of", "rate", "left", "what"):
        shown.add_column(head, justify="right" if head in ("here", "of", "rate", "left") else "left")
    for each in rows:
        shown.add_row(
            f"[bold]{escape(each.name)}[/]",
            each.commit[:12],
            _size(each.bytes),
            _size(each.total),
            f"{_size(each.rate)}/s" if each.rate else "",
            _left(each.eta),
            _what(each),
        )
    return shown


def _what(each: Row) -> str:
    if each.gone:
        return "[red]does not answer[/]"
    if each.failed:
        return f"[red]{escape(each.failed)}[/]"
    if each.fetches:
        return f"[yellow]waiting: {escape(each.reason)}[/]" if each.reason else f"from {escape(each.source or '…')}"
    if each.whole:
        return "[green]whole[/]" + (
            "" if each.current == each.commit else f", current is {each.current[:12] or 'nothing'}"
        )
    return "to be fetched"


def _size(count: float) -> str:
    return f"{count / GB:.1f} GB" if count >= GB / 10 else f"{count / 1e6:.1f} MB"


def _left(seconds: int | None) -> str:
    if seconds is None:
        return ""
    if seconds >= HOUR:
        return f"{seconds // HOUR} h {seconds % HOUR // MINUTE:02} min"
    return f"{seconds // MINUTE} min {seconds % MINUTE:02} s" if seconds >= MINUTE else f"{seconds} s"


def _troubles(told: Sequence[Told]) -> list[str]:
    return [f"[red]{escape(one.host.name)}: {escape(one.why)}[/]" for one in told if one.why]


def told_verified(told: Sequence[Told], inventory: Path) -> list[str]:
    """What reading all of it found."""
    lines = _troubles(told)
    good = [one for one in told if not one.why]
    for one in good:
        facts = one.facts
        speed = f"{_size(facts['bytes'])} in {facts['seconds']:.1f} s"
        wrong = ", ".join(facts["wrong"])
        verdict = f"[red]wrong: {escape(wrong)}[/]" if wrong else "[green]all as they should be[/]"
        lines.append(f"[bold]{escape(one.host.name)}[/]  {counted(facts['files'], 'file')}, {speed}: {verdict}")
    if any(one.facts["wrong"] for one in good):
        lines.append(f"Fetch what is wrong again, and that alone:  provision weights fetch {inventory}")
    return lines


def told_switched(told: Sequence[Told], inventory: Path, commit: str) -> list[str]:
    """What was switched, and what that does not do."""
    lines = _troubles(told)
    for one in (one for one in told if not one.why and commit):
        before = one.facts["before"]
        words = "was there already" if before == commit else f"{before[:12] or 'nothing'} → {commit[:12]}"
        lines.append(f"[bold]{escape(one.host.name)}[/]  current: {words}")
    if commit:
        lines.append(
            f"vLLM goes on with what it has loaded. To have it load this: set weights_revision: {commit} in the "
            f"inventory, then  provision bootstrap {inventory}"
        )
    return lines


def told_garbage(told: Sequence[Told], inventory: Path) -> list[str]:
    """What can be removed, or was."""
    lines = _troubles(told)
    good = [one for one in told if not one.why]
    for one in good:
        verb = "removed" if one.facts["removed"] else "would remove"
        lines += [
            f"[bold]{escape(one.host.name)}[/]  {verb} {commit[:12]}, {_size(size)}"
            for commit, size in one.facts["commits"].items()
        ]
    if not any(one.facts["commits"] for one in good):
        lines.append("Nothing to remove: all that is there is served, was served before, is wanted, or is open.")
    elif not all(one.facts["removed"] for one in good):
        lines.append(f"Remove it:  provision weights gc {inventory} --yes")
    return lines
