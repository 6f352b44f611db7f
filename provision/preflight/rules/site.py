"""Rules of the site: packages and who changes them, what can be fetched, ports, the model's files."""

from __future__ import annotations

from collections.abc import Iterator

from provision.preflight.facts import Reached
from provision.preflight.findings import Finding, blocker, note, ok, warning
from provision.preflight.rules.gpus import OURS
from provision.preflight.rules.seen import Seen, several, size_text

NOT_FOR_ALL = (
    "There is no such model, or it is not for all: check weights_repo; for a gated or private one set weights_token."
)
MARGIN = 2**30  # that the stage weights leaves free besides


def apt(seen: Seen) -> Iterator[Finding]:
    """Whether apt can be used now."""
    packages = seen.facts.packages
    if packages.lock_holder:
        yield warning(
            "apt",
            f"apt is in use: {packages.lock_holder} holds its lock.",
            f"A bootstrap waits {seen.host.setting('host_apt_lock_timeout')} s for it.",
        )
    if packages.interrupted or packages.broken:
        which = f": {several(list(packages.broken))}" if packages.broken else ""
        yield note(
            "apt", f"dpkg was interrupted{which}.", "A bootstrap finishes it first (dpkg --configure --pending)."
        )
    if not (packages.lock_holder or packages.interrupted or packages.broken):
        yield ok("apt", "not in use")


def upgrades(seen: Seen) -> Iterator[Finding]:
    """Whether unattended-upgrades could replace the driver under what runs."""
    packages = seen.facts.packages
    exposed = [name for name in packages.not_excluded if name in packages.driver]
    if packages.unattended and exposed:
        yield warning(
            "upgrades",
            f"unattended-upgrades may replace {several(exposed, 3)}, neither held nor excluded: a driver that "
            "changes under its loaded module breaks every new CUDA process.",
            f"A bootstrap holds and excludes them: {seen.bootstrap}",
        )
    elif packages.driver or packages.unattended:
        yield ok("upgrades", "cannot touch the driver" if packages.unattended else "unattended-upgrades does not run")


def reach(seen: Seen) -> Iterator[Finding]:
    """What a bootstrap would fetch from."""
    tried = [each for each in seen.facts.reach if each.failure != "dns"]  # the rule on names tells those
    failed = [each for each in tried if each.failure]
    apt_sources = [each for each in seen.facts.reach if each.use == "apt"]
    apt_is_gone = bool(apt_sources) and all(each.failure for each in apt_sources)
    for each in failed:
        optional = each.use == "python extra" or (each.use == "apt" and not apt_is_gone)
        needless = each.use == "weights" and has_all_weights(seen)
        severity = note if needless else warning if optional else blocker
        through = f" through {each.proxy}" if each.proxy else ""
        yield severity("reach", f"{_place(each)}{through}: {each.said}.", _advice(each))
    if tried and not failed:
        yield ok("reach", f"all of {len(tried)} addresses answer")


def _place(each: Reached) -> str:
    return f"{each.url} ({each.named})"


def _advice(each: Reached) -> str:
    known = {
        ("weights", "http 404"): "Check weights_repo and weights_revision.",
        ("path", "missing"): "Make it there, or take it out of the list.",
    }
    known |= dict.fromkeys([("weights", "http 401"), ("weights", "http 403")], NOT_FOR_ALL)
    if advice := known.get((each.use, each.failure)):
        return advice
    if each.failure == "http 404":
        return f"Nothing is there: check {each.named}."
    if each.failure == "certificate":
        return "If the site has an authority of its own, name its file in site_ca_certificates."
    if each.proxy:
        return "Is the proxy right (site_https_proxy), and does it let this through? Should site_no_proxy name it?"
    return f"If the site has a proxy or a mirror, set site_https_proxy or {each.named.split(' ')[0]}."


def has_all_weights(seen: Seen) -> bool:
    """Whether the wanted commit, or one of the wanted branch, is there whole."""
    wanted = str(seen.host.setting("weights_revision") or "")
    return any(wanted in (one.commit, one.revision) and one.good == one.files for one in seen.facts.weights.commits)


def weights(seen: Seen) -> Iterator[Finding]:
    """Which of the model's files are there, and room for the others."""
    told, place = seen.facts.weights, seen.facts.disks.get("weights")
    size = next((each.bytes for each in seen.facts.reach if each.use == "weights"), 0)
    repo = seen.host.setting("weights_repo")
    if not repo or place is None:
        return
    if has_all_weights(seen):
        yield ok("weights", f"{repo} is there")
        return
    there = sum(one.bytes * one.good // max(one.files, 1) for one in told.commits[-1:]) if told.commits else 0
    needed = max(0, size - told.partial) + MARGIN
    begun = f", {size_text(told.partial)} of it begun" if told.partial else ""
    partly = f" {told.commits[-1].good} of {told.commits[-1].files} files are there." if there else ""
    if size and place.free + there < needed:
        yield blocker(
            "weights",
            f"{repo} needs {size_text(needed)}{begun}; {size_text(place.free)} are free at {place.path}.{partly}",
            "Free some, mount a larger disk there, or set weights_dir to one.",
        )
    else:
        todo = f"A bootstrap downloads {size_text(size - told.partial) if size else 'it'}."
        yield note("weights", f"{repo} is not there{begun}.{partly}", todo)


def listeners(seen: Seen) -> Iterator[Finding]:
    """Whether the ports of Ray and vLLM are free, or theirs."""
    others = [each for each in seen.facts.ports if each.unit not in OURS]
    for each in others:
        who = f"process {each.pid} ({each.program}, {each.unit or each.user})" if each.pid else "another process"
        what = f"port {each.port} ({each.wanted_by}) is taken by {who}."
        if each.wanted_by == "ray_ports.workers":
            yield warning("ports", what, "Ray takes its workers' ports from this range: move one of them.")
        else:
            yield blocker(
                "ports", what, f"End it there (systemctl status {each.pid}), or set another {each.wanted_by}."
            )
    if not others:
        yield ok("ports", "those of Ray and vLLM are free, or theirs")
