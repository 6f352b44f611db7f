"""How a preflight reads: a line for each host, what was found, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.markup import escape

from provision.cli.words import counted
from provision.preflight import Finding, Severity, Sight
from provision.preflight.facts import Facts
from provision.preflight.findings import WORST_FIRST
from provision.preflight.rules.seen import TIMES, size_text

COLOURS = {Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.BLOCKER: "bold red"}
WIDTH = max(map(len, Severity))
NOTHING = "-"
HEADS = ("host", "system", "memory", "GPUs", "driver", "RDMA", "weights_dir")


def table(sights: Sequence[Sight], found: Sequence[Finding]) -> Iterator[str]:
    """What each host is, and what was found there: a line each, in columns."""
    rows = [list(HEADS)]
    rows += [
        [sight.host.name, *(_cells(sight.facts) if sight.facts else [NOTHING] * len(HEADS[1:]))] for sight in sights
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    yield f"[bold]{escape(lines[0])}  found[/]"
    for sight, line in zip(sights, lines[1:], strict=True):
        yield f"{escape(line)}  {_verdict(sight.host.name, found)}"


def _cells(facts: Facts) -> list[str]:
    system, place = facts.base.system, facts.disks.get("weights")
    names = Counter(gpu.name.removeprefix("NVIDIA ") for gpu in facts.nvidia.gpus)
    on_bus = sum(device.kind.startswith(("0x0302", "0x0300")) for device in facts.base.nvidia)
    cards = ", ".join(f"{count} {TIMES} {name}" for name, count in names.items())
    up = sum(port.is_up for port in facts.rdma.ports)
    return [
        f"{system.get('id', '?')} {system.get('version', '')}".strip(),
        size_text(facts.base.memory),
        cards or (f"{on_bus} on the bus" if on_bus else NOTHING),
        facts.nvidia.loaded or NOTHING,
        f"{up} of {len(facts.rdma.ports)} up" if facts.rdma.ports else NOTHING,
        f"{place.kind}, {size_text(place.free)} free" if place else NOTHING,
    ]


def _verdict(host: str, found: Sequence[Finding]) -> str:
    """How many findings of each severity concern a host."""
    counts = Counter(finding.severity for finding in found if host in finding.hosts)
    words = [
        f"[{COLOURS[severity]}]{counted(counts[severity], severity)}[/]"
        for severity in WORST_FIRST
        if counts[severity] and severity != Severity.OK
    ]
    return ", ".join(words) or f"[{COLOURS[Severity.OK]}]ok[/]"


def findings(found: Sequence[Finding], everything: bool) -> Iterator[str]:
    """The findings, each once: the same on several hosts is told with all their names."""
    together: dict[tuple[Severity, str, str, str], list[str]] = {}
    for finding in found:
        if everything or finding.severity != Severity.OK:
            key = finding.severity, finding.check, finding.message, finding.todo
            together.setdefault(key, []).extend(finding.hosts)
    if together:
        yield ""
    for (severity, check, message, todo), hosts in together.items():
        mark = f"[{COLOURS[severity]}]{severity:{WIDTH}}[/]"
        yield f"{mark} [bold]{escape(', '.join(dict.fromkeys(hosts)))}[/] {escape(check)}: {escape(message)}"
        if todo:
            yield f"{'':{WIDTH}} {escape(todo)}"


def summary(sights: Sequence[Sight], found: Sequence[Finding], seconds: float) -> Iterator[str]:
    """The last line."""
    counts = Counter(finding.severity for finding in found)
    gone = sum(sight.facts is None for sight in sights)
    looked = f"{counted(len(sights) - gone, 'host')} looked at in {seconds:.1f} s" + (f", {gone} not" if gone else "")
    said = [counted(counts[each], each) for each in WORST_FIRST if counts[each] and each != Severity.OK]
    clear = "nothing is in the way of a bootstrap" if not counts[Severity.BLOCKER] else "a bootstrap would not go well"
    yield ""
    yield f"{looked}: {clear}" + (f" ({', '.join(said)})." if said else ".")


def document(sights: Sequence[Sight], found: Sequence[Finding], seconds: float, code: int) -> dict[str, Any]:
    """A preflight as docs/preflight.md describes it."""
    counts = Counter(finding.severity for finding in found)
    return {
        "version": 1,
        "seconds": round(seconds, 3),
        "exit_code": code,
        "counts": {str(severity): counts[severity] for severity in Severity},
        "findings": [{**asdict(finding), "hosts": list(finding.hosts)} for finding in found],
        "hosts": [_host_document(sight) for sight in sights],
    }


def _host_document(sight: Sight) -> dict[str, Any]:
    trouble = sight.trouble
    return {
        "name": sight.host.name,
        "address": sight.host.address,
        "replica": sight.replica.name,
        "reachable": not (trouble and trouble.unreachable),
        "error": trouble.message if trouble else None,
        "seconds": round(sight.seconds, 3),
        "facts": asdict(sight.facts) if sight.facts else None,
    }
