"""Turns what ansible-runner reports into the events of a run, and gathers them into its Result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from provision.converge import translate
from provision.converge.journal import Event, now
from provision.converge.result import Answer, Change, Difference, Failure, HostResult
from provision.drift.receipts import Mended

OUTCOMES = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_skipped": "skipped",
    "runner_on_unreachable": "unreachable",
}

ARGUMENT_CHECK = "Validating arguments against arg spec"


class Recorder:
    """Follows one run. `emit` gets each event; `hosts` and `error` hold what they came to."""

    def __init__(self, hosts: Iterable[str], stages: Iterable[str], run: str, emit: Callable[[Event], None]) -> None:
        self.hosts = {name: HostResult(name) for name in hosts}
        self.stages = tuple(stages)
        self.error: str | None = None
        self.running: dict[str, tuple[str, str]] = {}
        self._run, self._emit = run, emit
        self._stage: str | None = None
        self._stage_start = 0.0
        self._complaint = ""
        self._fresh: list[Failure] = []  # of the playbook that runs now
        self._is_whole = False  # whether it came to its end

    def send(self, kind: str, /, **fields: object) -> None:
        """Emit one event."""
        self._emit({"type": kind, "time": now(), "run": self._run, **fields})

    def refuse(self, host: str, failure: Failure) -> None:
        """A host that is left out from the start."""
        self.hosts[host].failure = failure
        said = {"unreachable": failure.unreachable, "message": failure.message, "hint": failure.hint}
        self.send("host_refused", host=host, kind=failure.task, **said)

    def answered(self, host: str, tokens: int, latency_ms: int) -> None:
        """The model on a host has generated something."""
        self.hosts[host].answer = Answer(tokens, latency_ms)
        self.send("model_answered", host=host, tokens=tokens, latency_ms=latency_ms)

    def mended(self, host: str, done: Mended) -> None:
        """A host has set something right by itself. Why it could not, if so, the visit that follows will tell."""
        actions = tuple(change.action for change in done.changes)
        effects = tuple(change.effect for change in done.changes)
        differences = tuple(Difference(one.resource, one.before, one.after) for one in done.changes if one.resource)
        if not actions:
            return
        result = self.hosts[host]
        result.changes.append(Change(done.stage, done.module, actions, differences, effects))
        result.counts["changed"] = result.counts.get("changed", 0) + 1
        self._finished(host, result.changes[-1], "changed", done.seconds, None)

    def runner_event(self, event: Mapping[str, Any]) -> None:
        """Take one event of ansible-runner."""
        kind, data = str(event.get("event")), event.get("event_data") or {}
        if kind == "playbook_on_play_start":
            self.begin(str(data.get("name") or data.get("play")))
        elif kind in ("runner_on_start", "runner_on_ok") and str(data.get("task")).startswith(ARGUMENT_CHECK):
            return  # Ansible's own step in front of each role: worth a word only if it fails
        elif kind == "runner_on_start" and self._known(data):
            self.running[data["host"]] = (self._stage or "", str(data["task"]))
            self.send("task_started", host=data["host"], stage=self._stage, task=str(data["task"]))
        elif kind in OUTCOMES and self._known(data):
            self._task(OUTCOMES[kind], data, str(event.get("stdout") or ""))
        elif kind == "playbook_on_stats":
            self._stats(data)
        elif kind == "error" or "[ERROR]" in str(event.get("stdout") or ""):
            self._complaint += str(event.get("stdout") or "") + "\n"

    def begin(self, stage: str) -> None:
        """A stage begins, and so the one before it ends. Plays that are no stage asked for are passed over."""
        self.finish_stage()
        if stage in self.stages:
            self._stage, self._stage_start = stage, time.monotonic()
            self.send("stage_started", stage=stage)

    def finish_stage(self) -> None:
        """End the stage that runs now, if one does."""
        if self._stage:
            self.send("stage_finished", stage=self._stage, seconds=round(time.monotonic() - self._stage_start, 2))
        self._stage = None

    def end(self, code: int) -> None:
        """A playbook ended, with Ansible's own exit code; one that no host accounts for is an error of the run.

        So is one that broke off: hosts that had failed before say nothing of why.
        """
        self.finish_stage()
        is_whole, self._is_whole = self._is_whole, False
        if code and not (is_whole and any(host.failure for host in self.hosts.values())):
            reason = self._complaint.strip().replace("[ERROR]: ", "")
            self.error = reason or f"Ansible ended with code {code} and gave no reason."

    def _known(self, data: Mapping[str, Any]) -> bool:
        return self._stage is not None and data.get("host") in self.hosts

    def _task(self, outcome: str, data: Mapping[str, Any], text: str) -> None:
        host, task, result = self.hosts[data["host"]], str(data["task"]), data.get("res") or {}
        stage = self._stage or ""
        self.running.pop(host.name, None)
        if outcome == "failed" and data.get("ignore_errors"):
            outcome = "ok"
        # What is secret comes without its result; the first word of Ansible's text still tells whether it changed.
        if outcome == "ok" and result.get("changed", text.lstrip().startswith("changed:")):
            outcome = "changed"
        said = translate.actions(result)
        effects = translate.effects(result)
        change = Change(stage, task, said, translate.differences(result), effects or self._effects(data, said))
        message = translate.message(result) if outcome in ("failed", "unreachable") else None
        if outcome == "changed":
            host.changes.append(change)
        if outcome == "ok" and "latency_ms" in result and "tokens" in result:
            self.answered(host.name, int(result["tokens"]), int(result["latency_ms"]))
        if message is not None:
            host.failure = Failure(stage, task, message, unreachable=outcome == "unreachable")
            self._fresh.append(host.failure)
        self._finished(host.name, change, outcome, float(data.get("duration") or 0), message)

    def _finished(self, host: str, change: Change, outcome: str, seconds: float, message: str | None) -> None:
        self.send(
            "task_finished",
            host=host,
            stage=change.stage,
            task=change.task,
            status=outcome,
            seconds=round(seconds, 3),
            actions=list(change.actions) if outcome == "changed" else [],
            effects=list(change.effects) if outcome == "changed" else [],
            changes=[vars(difference) for difference in change.differences] if outcome == "changed" else [],
            message=message,
        )

    @staticmethod
    def _effects(data: Mapping[str, Any], actions: tuple[str, ...]) -> tuple[str, ...]:
        """Of a task of Ansible's own: a reboot is one, all else disturbs no one."""
        is_reboot = str(data.get("task_action", "")).rpartition(".")[2] == "reboot"
        return ("reboot" if is_reboot else "none",) * max(1, len(actions))

    def _stats(self, data: Mapping[str, Any]) -> None:
        names = {"ok": "ok", "changed": "changed", "failures": "failed", "skipped": "skipped", "dark": "unreachable"}
        for host in self.hosts.values():
            counts = {ours: int((data.get(theirs) or {}).get(host.name, 0)) for theirs, ours in names.items()}
            host.counts = {name: host.counts.get(name, 0) + count for name, count in counts.items()}
            if host.failure in self._fresh and not (counts["failed"] or counts["unreachable"]):
                host.failure = None  # it failed inside a block that rescued it
        self._fresh.clear()
        self._is_whole = True
