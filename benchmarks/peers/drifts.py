"""Ways to break a converged host by hand, each with a way to see it that uses no code of anyone who repairs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peers.measure import OverError
from peers.site import Site


@dataclass(frozen=True)
class Drift:
    """One resource: a command that breaks it, and one that shows its state."""

    name: str
    stage: str
    break_: str
    look: str


ALL = (
    Drift("a sysctl", "host", "sysctl -qw vm.swappiness=60", "sysctl --values vm.swappiness"),
    Drift(
        "a file",
        "host",
        "echo by hand >> /etc/security/limits.d/90-provision.conf",
        "sha256sum /etc/security/limits.d/90-provision.conf",
    ),
    Drift("a file's mode", "host", "chmod 0755 /etc/provision/secrets", "stat --format=%a /etc/provision/secrets"),
    Drift("swap", "swap", "swapoff /data/swapfile", "swapon --show=NAME --noheadings"),
    Drift("a hold", "driver", "apt-mark unhold nvidia-open >/dev/null", "apt-mark showhold nvidia-open"),
    Drift(
        "a unit",
        "driver",
        "systemctl disable --quiet nvidia-persistenced.service",
        "systemctl is-enabled nvidia-persistenced.service || true",
    ),
    Drift(
        "a GPU's compute mode",
        "gpu",
        "nvidia-smi -i 5 -c EXCLUSIVE_PROCESS >/dev/null",
        "nvidia-smi -i 5 --query-gpu=compute_mode --format=csv,noheader",
    ),
)


def chosen(stages: str) -> list[Drift]:
    """Those of the stages that were run."""
    return [drift for drift in ALL if not stages or drift.stage in stages.split(",")]


class Broken:
    """A host with drifts; `mended` says whether it is again as it was before."""

    def __init__(self, site: Site, host: str, drifts: Sequence[Drift]) -> None:
        self.site, self.host, self.drifts = site, host, drifts
        self.before = self._look()
        site.sh(host, "; ".join(drift.break_ for drift in drifts))
        unmoved = self._names(lambda before, now: before == now)
        if unmoved:
            raise OverError(f"{host}: breaking it changed nothing about {', '.join(unmoved)}")

    def expect_mended(self, who: str) -> None:
        """Raise OverError with what `who` has left broken."""
        left = self._names(lambda before, now: before != now)
        if left:
            raise OverError(f"{who} left broken on {self.host}: {', '.join(left)}")

    def _names(self, is_so: Callable[[str, str], bool]) -> list[str]:
        """The drifts of which something holds between their state before and their state now."""
        states = zip(self.drifts, self.before, self._look(), strict=True)
        return [drift.name for drift, before, now in states if is_so(before, now)]

    def _look(self) -> list[str]:
        mark = "-- next --"
        said = self.site.sh(self.host, f"; echo '{mark}'; ".join(drift.look for drift in self.drifts))
        return [part.strip() for part in said.split(mark)]
