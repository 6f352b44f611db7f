"""The runs that this controller's user has made, read from their journals: what is on disk, and who still writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from provision import exits
from provision.converge.identity import Holder, Identity, identity
from provision.converge.journal import Event, is_open, runs_dir
from provision.converge.outcome import BAD, Outcome
from provision.converge.stages import STAGES
from provision.errors import UsageError

SHOWN = 5  # runs that an error names


@dataclass(frozen=True)
class RunRecord:
    """One run: `facts` is its run.json."""

    directory: Path
    facts: Mapping[str, Any] = field(repr=False)

    @property
    def id(self) -> str:
        """The name of its directory."""
        return self.directory.name

    @property
    def inventory(self) -> Path:
        """Absolute."""
        return Path(str(self.facts.get("inventory", "")))

    @property
    def hosts(self) -> tuple[str, ...]:
        """Those it was to visit."""
        return tuple(self.facts.get("hosts") or ())

    @property
    def stages(self) -> tuple[str, ...]:
        """Those it was to visit."""
        return tuple(self.facts.get("stages") or ())

    @property
    def check(self) -> bool:
        """Whether it was to change nothing."""
        return bool(self.facts.get("check"))

    @property
    def lab(self) -> bool:
        """Whether it was a rehearsal (`--lab`)."""
        return bool(self.facts.get("lab"))

    @property
    def who(self) -> Identity | None:
        """Who ran it, in which process; None in the journals of earlier versions."""
        try:
            return identity(self.facts)
        except (KeyError, ValueError, TypeError):
            return None

    @property
    def log(self) -> Path:
        """Ansible's own text."""
        return self.directory / "ansible.log"

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and if it died."""
        code = self.facts.get("exit_code")
        return None if code is None else int(code)

    @cached_property
    def state(self) -> str:
        """`running`, `finished`, `interrupted`, or `died`: its process is gone, and said nothing."""
        if self.facts.get("finished"):
            return "interrupted" if self.exit_code == exits.INTERRUPTED else "finished"
        lives = is_open(self.directory) or bool(self.who and self.who.lives)
        return "running" if lives else "died"

    @property
    def refused(self) -> bool:
        """Whether another run held the fleet, so that nothing was done."""
        return self.exit_code == exits.LOCKED

    @cached_property
    def outcome(self) -> Outcome:
        """What it came to, or has come to so far, from its events."""
        outcome = Outcome()
        for event in self.events():
            outcome.add(event)
        return outcome

    @cached_property
    def told(self) -> Mapping[str, Any]:
        """The outcome as run.json keeps it, which is quicker to read; of a run that has not ended, from its events."""
        return self.facts.get("outcome") or self.outcome.document()

    @property
    def statuses(self) -> dict[str, str]:
        """Of each host that has one, as in `host_finished`."""
        return {host: str(told["status"]) for host, told in self.told["hosts"].items()}

    @property
    def good(self) -> frozenset[str]:
        """The hosts that it brought to where they should be."""
        if self.state != "finished" or self.told["error"]:
            return frozenset()
        return frozenset(host for host in self.hosts if self.statuses.get(host, BAD[0]) not in BAD)

    @property
    def last_seen(self) -> str:
        """When it last wrote an event; of one that died, about when it did (RFC 3339)."""
        try:
            written = (self.directory / "events.jsonl").stat().st_mtime
        except OSError:
            return str(self.facts.get("started", ""))
        return datetime.fromtimestamp(written, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

    def events(self) -> Iterator[Event]:
        """Its events in their order. A line that the end of the process or of the machine has torn is passed over."""
        try:
            with (self.directory / "events.jsonl").open("rb") as lines:
                for line in lines:
                    try:
                        event = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(event, dict) and "type" in event:
                        yield event
        except OSError:
            return


def runs(inventory: Path | None = None, *, lab: bool | None = None) -> list[RunRecord]:
    """All runs that are kept, newest first: of one inventory; of rehearsals (`lab`) or of all others."""
    found = filter(None, map(_read, sorted(_directories(), reverse=True)))
    wanted = None if inventory is None else inventory.resolve()
    return [run for run in found if (wanted in (None, run.inventory)) and (lab is None or run.lab == lab)]


def load(prefix: str) -> RunRecord:
    """The run whose id begins so, or ends in `-prefix`; `last` is the newest. Raises UsageError if that is not one."""
    if prefix == "last":
        found = runs()[:1]
    else:
        names = [path for path in _directories() if path.name.startswith(prefix) or path.name.endswith(f"-{prefix}")]
        found = list(filter(None, map(_read, names)))
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(run.id for run in found[:SHOWN])
        raise UsageError(f"{len(found)} runs are called {prefix}…: {some}. Give more of the id.")
    known = ", ".join(run.id for run in runs()[:SHOWN])
    raise UsageError(f"No run {prefix} is kept in {runs_dir()}. " + (f"The last: {known}." if known else "None is."))


def taken_over(held: Holder) -> dict[str, str]:
    """What an event says of the holder of a lock or lease that died with it; `died` if its journal is here to tell."""
    run = next((run for run in runs() if run.id == held.run), None)
    died = {"died": run.last_seen} if run else {}
    who = {"user": held.who.user, "controller": held.who.controller, "origin": held.who.origin}
    return {"of_run": held.run, **who, "since": held.since, **died}


def last_failed(inventory: Path, *, lab: bool | None = None) -> tuple[str, ...]:
    """The hosts that failed, were unreachable or held back in the last run that ended, or was interrupted."""
    for run in _changing(inventory, lab):
        if run.state in ("finished", "interrupted"):
            return tuple(host for host in run.hosts if run.statuses.get(host) in BAD)
    return ()


def last_unfinished(inventory: Path | None = None, *, lab: bool | None = None) -> RunRecord | None:
    """The newest run that did not bring all its hosts where they should be, and that no later run has made good.

    A run that was to visit everything and did ends the search: what came before it is past.
    """
    done: dict[Path, set[tuple[str, str]]] = {}
    whole: set[Path] = set()
    for run in _changing(inventory, lab):
        if run.state == "running" or run.inventory in whole:
            continue
        made = done.setdefault(run.inventory, set())
        if not set(product(set(run.hosts) - run.good, run.stages)) <= made:
            return run
        made.update(product(run.good, run.stages))
        if run.exit_code == exits.OK and not run.facts.get("limit") and set(STAGES) <= set(run.stages):
            whole.add(run.inventory)
    return None


def _changing(inventory: Path | None, lab: bool | None) -> list[RunRecord]:
    return [run for run in runs(inventory, lab=lab) if not run.check and not run.refused]


def _directories() -> Sequence[Path]:
    directory = runs_dir()
    return list(directory.iterdir()) if directory.is_dir() else []


def _read(directory: Path) -> RunRecord | None:
    try:
        facts = json.loads((directory / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return RunRecord(directory, facts) if isinstance(facts, dict) else None
