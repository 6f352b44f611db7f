"""An inventory, read as Ansible reads it, checked against what the roles declare, and typed."""

from provision.inventory.load import load_fleet, select, simulated
from provision.inventory.model import Fleet, Host, Replica

__all__ = ["Fleet", "Host", "Replica", "load_fleet", "select", "simulated"]
