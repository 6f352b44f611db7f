"""For the packages' own scripts: says which version and flavour of the kernel modules now lies on the host's disk.

Building them takes a compiler and the kernel's headers on a real host, so it can fail there; here, if a fault says so.
"""

from __future__ import annotations

import os
import sys

import state

# As dkms 3.0 says it, which the packages' scripts call.
BUILD_FAILED = """\
Building module:
Cleaning build area...
'make' -j2 KERNEL_UNAME={kernel} modules...(bad exit status: 2)
Error! Bad return status for module build on kernel: {kernel} (x86_64)
Consult /var/lib/dkms/nvidia/{version}/build/make.log for more information.
"""


def main(version: str, arguments: list[str]) -> int:
    verb, flavour = (*arguments, "open")[:2]
    with state.Change() as hardware:
        driver = hardware["driver"]
        if verb == "removed":
            if (driver["installed"], driver["flavour"]) == (version, flavour):
                driver["installed"] = None
        elif hardware["faults"].get("module-build-fails", version) != version:
            sys.stderr.write(BUILD_FAILED.format(kernel=os.uname().release, version=version))
            return 10
        else:
            driver.update(installed=version, flavour=flavour)
    return 0
