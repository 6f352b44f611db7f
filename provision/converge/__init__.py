"""Running the stages on a fleet: lock, journal, reach, Ansible, events, result."""

from provision.converge.bootstrap import bootstrap
from provision.converge.result import Change, Failure, HostResult, Result
from provision.converge.stages import STAGES

__all__ = ["STAGES", "Change", "Failure", "HostResult", "Result", "bootstrap"]
