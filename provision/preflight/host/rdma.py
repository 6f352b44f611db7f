"""RDMA ports as the kernel and the verbs library tell of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.provision_host import read_text, run

ADAPTERS = Path("/sys/class/infiniband")
DMA_BUF = (5, 12)  # the first kernel that hands memory of GPUs to RDMA adapters by itself


def look(_asked: Mapping[str, Any]) -> dict[str, Any]:
    """All ports; whether the module nvidia_peermem is loaded, and whether this kernel can share by DMA-BUF."""
    kernel = tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])
    adapters = sorted(ADAPTERS.iterdir()) if ADAPTERS.is_dir() else []
    mtus = active_mtus(run(["ibv_devinfo"], check=False, timeout_s=15).out) if adapters else {}
    return {
        "ports": [port for adapter in adapters for port in _ports(adapter, mtus)],
        "peermem": Path("/sys/module/nvidia_peermem").is_dir(),
        "dma_buf_kernel": kernel >= DMA_BUF,
    }


def _ports(adapter: Path, mtus: Mapping[tuple[str, int], int]) -> Iterator[dict[str, Any]]:
    device = Path(os.path.realpath(adapter / "device"))
    links = sorted(path.name for path in (device / "net").iterdir()) if (device / "net").is_dir() else []
    for port in sorted((adapter / "ports").iterdir()):
        said = {name: (read_text(str(port / name)) or "").strip() for name in ("state", "phys_state", "rate")}
        rate = re.match(r"[\d.]+", said["rate"])
        yield {
            "device": adapter.name,
            "port": int(port.name),
            "state": said["state"].partition(": ")[2],
            "physical": said["phys_state"].partition(": ")[2],
            "rate": float(rate.group()) if rate else 0.0,
            "link_layer": (read_text(str(port / "link_layer")) or "").strip(),
            "firmware": (read_text(str(adapter / "fw_ver")) or "").strip(),
            "adapter": (read_text(str(adapter / "hca_type")) or "").strip(),
            "address": device.name if device.exists() else "",  # Soft-RoCE has no place on the bus
            "numa": (read_text(str(device / "numa_node")) or "-1").strip(),
            "interfaces": links,
            "mtu": mtus.get((adapter.name, int(port.name)), 0),
        }


def active_mtus(text: str) -> dict[tuple[str, int], int]:
    """The MTU in use by device and port, from `ibv_devinfo`."""
    found, device, port = {}, "", 0
    for line in text.splitlines():
        name, _, value = (word.strip() for word in line.partition(":"))
        if name == "hca_id":
            device = value
        elif name == "port":
            port = int(value)
        elif name == "active_mtu" and value[:1].isdigit():  # of a port that is down it may be no number
            found[device, port] = int(value.split()[0])
    return found
