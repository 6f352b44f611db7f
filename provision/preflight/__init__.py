"""All that can be known of a fleet before anything is changed: facts of each host, and what follows from them."""

from provision.preflight.findings import Finding, Severity
from provision.preflight.judge import judge
from provision.preflight.request import SETTINGS
from provision.preflight.survey import Sight, look_at

__all__ = ["SETTINGS", "Finding", "Severity", "Sight", "judge", "look_at"]
