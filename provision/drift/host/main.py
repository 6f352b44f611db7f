"""Verifies this host's receipts and says what it found, as one JSON document."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ansible.module_utils import provision_host

from provision.drift.host import steps
from provision.drift.host.state import state

RECEIPTS = "/var/lib/provision/receipts"
FORMAT = 1
HEAVY = "ray_cluster,vllm_canary"  # ask the engine itself, which has better to do every few minutes


def main(argv: list[str]) -> int:
    """Print the document; with `--metrics` write it as metrics instead."""
    asked = _arguments(argv)
    for name in ("PROVISION_RUN", "PROVISION_STAGE"):
        os.environ.pop(name, None)  # nothing that runs here is to be noted for a receipt
    os.chdir("/")
    steps.prepare(bool(asked.mend))
    if asked.metrics and provision_host.lock_holder():
        return 0  # what is under way is no drift; the age of the metrics tells
    begin = time.monotonic()
    mended = _mend(asked) if asked.mend else {}
    receipts = _receipts(asked.receipts, _names(asked.stages))
    if not asked.mend:
        steps.ask_together(step for receipt in receipts.values() for step in receipt.get("steps", ()))
    verified = {name: _stage(receipt, asked) for name, receipt in receipts.items()}
    if asked.metrics:
        from provision.drift.host import metrics  # noqa: PLC0415 - as below: imported by those who use it alone

        metrics.write({"stages": verified}, asked.metrics, time.monotonic() - begin)
        return 0
    sound = [receipt for receipt in receipts.values() if "steps" in receipt]
    document = {
        "format": FORMAT,
        "python": sys.version.split()[0],
        **state(sound),
        "stages": verified,
        "mended": mended,
    }
    json.dump(document, sys.stdout)
    return 0


def _mend(asked: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """What was set right, by stage. The host is held from before the receipts are read until the last step is done.

    So a run that comes later, with other parameters, waits for the end, and what it does is not undone.
    """
    with provision_host.host_lock("provision-verify --mend", asked.lock):
        steps.hold()
        receipts = _receipts(asked.receipts, _names(asked.mend))
        sound = {name: receipt["steps"] for name, receipt in receipts.items() if "steps" in receipt}
        return {name: [vars(done) for done in steps.mend(found)] for name, found in sound.items()}


def _names(listed: str) -> list[str]:
    return [name for name in listed.split(",") if name]


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="provision-verify", description=__doc__)
    parser.add_argument("--stages", default="", metavar="NAMES", help="only these, in this order [default: all]")
    parser.add_argument("--skip", default="", metavar="MODULES", help="leave out the steps of these modules")
    parser.add_argument("--light", action="store_const", dest="skip", const=HEAVY, help=f"leave out {HEAVY}")
    parser.add_argument("--follow", action="store_true", help="ask the hub what a branch of weights means now")
    parser.add_argument("--mend", default="", metavar="NAMES", help="set right first what nobody notices in these")
    parser.add_argument("--who", action="store_true", help="say who made each change, where this host knows")
    parser.add_argument("--metrics", metavar="DIRECTORY", help="write metrics there instead of the document")
    parser.add_argument("--receipts", default=RECEIPTS, metavar="DIRECTORY", help="[default: %(default)s]")
    parser.add_argument("--lock", default=provision_host.LOCK_PATH, metavar="FILE", help="[default: %(default)s]")
    return parser.parse_args(argv)


def _receipts(folder: str, stages: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The receipts that there are, by stage; one that cannot be read says why."""
    found: dict[str, dict[str, Any]] = {}
    for name in stages or sorted(path.stem for path in Path(folder).glob("*.json")):
        path = Path(folder, f"{name}.json")
        try:
            receipt = json.loads(path.read_bytes())
            if receipt["format"] != FORMAT:
                raise ValueError(f"it is of form {receipt['format']}")
            found[name] = {"inputs": dict(receipt["inputs"]), "steps": list(receipt["steps"])}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            found[name] = {"inputs": {}, "error": f"{path} cannot be read ({error})."}
        found[name]["sealed"] = path.stat().st_mtime
    return found


def _stage(receipt: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    begin = time.monotonic()
    verdict = steps.Verdict(error=receipt.get("error"))
    if verdict.error is None:
        verdict = steps.verify(receipt["steps"], frozenset(asked.skip.split(",")), asked.follow)
    if asked.who and verdict.changes:
        from provision.drift.host.who import Witness  # noqa: PLC0415

        witness = Witness(receipt["sealed"])
        for change in verdict.changes:
            change["who"] = witness.who(change)
    return {
        "inputs": receipt["inputs"],
        "sealed": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(receipt["sealed"])),
        "changes": verdict.changes,
        "facts": verdict.facts,
        "error": verdict.error,
        "answer": verdict.answer,
        "seconds": round(time.monotonic() - begin, 3),
    }
