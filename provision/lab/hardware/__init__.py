"""The simulated hardware: GPUs, driver, fabric, InfiniBand, the kernel's knobs, NVIDIA's packages, faults.

`install` prepares a base tree, `create` makes the hardware of a host, `power_on` is called before each of its boots.
"""

from provision.lab.hardware import repository
from provision.lab.hardware.edge import fingerprint, install
from provision.lab.hardware.factory import create, power_on

__all__ = ["create", "fingerprint", "install", "power_on", "repository"]
