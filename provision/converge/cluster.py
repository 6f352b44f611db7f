"""The one place that knows Ray: a cluster of controllers, their sameness, a task for each shard."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from provision.converge.result import Result
from provision.converge.shard import Item, Mailbox, Order, Refused, check, run_shard
from provision.errors import UsageError

WANTED = "ray>=2.50,<3"


class LostError(Exception):
    """A shard ended without a result."""


class Cluster:
    """A connection to the Ray cluster at an address: `host:port`, `auto` for this machine's, `local` for a new one."""

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._ours = False

    def __enter__(self) -> Cluster:
        self._ray = _ray()
        if not self._ray.is_initialized():
            self._connect()
            self._ours = True
        # No restart behind our back, of the mailbox or of a task: what ran half may still be at work on the hosts.
        self._mailbox = self._ray.remote(num_cpus=0)(Mailbox).remote()
        self._task = self._ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(converge_shard)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.kill(self._mailbox)
        if self._ours:
            self._ray.shutdown()

    @property
    def size(self) -> int:
        """How many shards can run at once: one on each processor that the controllers give to Ray."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def compare(self, order: Order) -> None:
        """Ask every controller whether it has what this one has, before anything is begun."""
        pin = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        asked = {}
        for node in self._ray.nodes():
            if node["Alive"] and node["Resources"].get("CPU"):
                there = self._ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=pin(node["NodeID"], soft=False))
                asked[f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"] = there(check).remote(order)
        wrong = {name: self._answer(task) for name, task in asked.items()}
        said = [f"controller {name} may not take part: {answer}" for name, answer in wrong.items() if answer]
        if said:
            raise UsageError(
                "--engine ray: "
                + "\n  ".join(said)
                + "\n  Bring the inventory, at the same path, and the same version of "
                "provision to each controller; then run the same command again."
            )

    def submit(self, order: Order) -> Any:  # noqa: ANN401 - a reference of Ray's
        """Begin a shard, on whichever controller has a processor free."""
        return self._task.remote(order, self._mailbox)

    def wait(self, tasks: Sequence[Any], seconds: float) -> list[Any]:
        """The tasks that have ended, after so many seconds at most."""
        done, _ = self._ray.wait(list(tasks), num_returns=len(tasks), timeout=seconds)
        return list(done)

    def take(self, stop: int) -> list[Item]:
        """What the shards have sent; `stop` is how often they are asked to stop."""
        items: list[Item] = self._ray.get(self._mailbox.take.remote(stop))
        return items

    def result(self, task: Any) -> Result | Refused | None:  # noqa: ANN401 - as above
        """What a shard came to. Raises LostError."""
        try:
            found: Result | Refused | None = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            raise LostError(_last_line(error)) from error
        return found

    def _answer(self, task: Any) -> str:  # noqa: ANN401 - as above
        try:
            return str(self._ray.get(task))
        except self._ray.exceptions.RayError as error:
            return f"it cannot run provision ({_last_line(error)}); start Ray from the environment that has it"

    def _connect(self) -> None:
        address = self._address or os.environ.get("RAY_ADDRESS") or "auto"
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"--engine ray: no Ray cluster of controllers answers at {address}: {_last_line(error)}\n"
                f"  Start it here:             {Path(sys.executable).parent}/ray start --head\n"
                f"  On each other controller:  {Path(sys.executable).parent}/ray start --address=THIS_HOST:6379\n"
                "  If it wants a token:       export RAY_AUTH_MODE=token  and the same ~/.ray/auth_token everywhere"
            ) from error


def converge_shard(order: Order, mailbox: Any) -> Result | Refused | None:  # noqa: ANN401 - an actor's type is made as Ray runs
    """The task of a shard."""
    ray = _ray()
    return run_shard(order, lambda items: int(ray.get(mailbox.give.remote(items))))


def _ray() -> Any:  # noqa: ANN401 - a module that need not be there
    try:
        import ray  # noqa: PLC0415
        import ray.util.scheduling_strategies  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            f"--engine ray needs Ray, which is not installed here ({error}).\n"
            f"  Install it, in the same version on every controller:  {sys.executable} -m pip install '{WANTED}'"
        ) from error
    return ray


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
