"""What may lead traffic between GPUs and adapters astray: the IOMMU, and access control (ACS) in PCIe switches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ansible.module_utils import provision_pci as pci


def look(_asked: Mapping[str, Any]) -> dict[str, Any]:
    """How the IOMMU treats the GPUs (`identity`, `DMA`, `DMA-FQ`; none without one), and the switches that redirect."""
    treated = {pci.iommu(address) for address in pci.gpus()} - {pci.NO_IOMMU}
    switches = (address for address in pci.devices("", pci.BRIDGE) if pci.leads_down(address))
    return {"iommu": sorted(treated), "acs_redirect": [address for address in switches if pci.redirects(address)]}
