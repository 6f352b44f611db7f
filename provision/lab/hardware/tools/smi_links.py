"""How the cards are joined: `nvidia-smi topo` and `nvidia-smi nvlink`."""

from __future__ import annotations

import state

MYPY = False
if MYPY:
    from typing import Any

_LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks"""

_P2P_LEGEND = """
Legend:

  X    = Self
  OK   = Status Ok
  CNS  = Chipset not supported
  GNS  = GPU not supported
  TNS  = Topology not supported
  NS   = Not supported
  U    = Unknown"""


def matrix(hardware: state.Hardware) -> list[str]:
    """`topo -m`: cards and network adapters against each other."""
    profile = hardware["profile"]
    cards, ports = hardware["gpus"], profile["rdma"]
    names = [f"GPU{card['index']}" for card in cards] + [f"NIC{number}" for number in range(len(ports))]
    affinity = "CPU Affinity\tNUMA Affinity\tGPU NUMA ID"
    lines = ["\t\x1b[4m" + "\t".join([*names, affinity]) + "\x1b[0m"]
    nodes = [(card["numa"], card["index"], True) for card in cards]
    nodes += [(port["numa"], number, False) for number, port in enumerate(ports)]
    for row, name in enumerate(names):
        cells = [_between(profile, nodes[row], other) for other in nodes]
        node, _, is_card = nodes[row]
        tail = f"\t{profile['numa_nodes'][node]}\t{node}\t\tN/A" if is_card else "\t\t\t\t"
        lines.append(f"{name}\t" + "\t".join(cells) + tail)
    lines.append(_LEGEND)
    if ports:
        legend = [f"  NIC{number}: {port['name']}" for number, port in enumerate(ports)]
        lines += ["", "NIC Legend:", "", *legend]
    return lines


def _between(profile: dict[str, Any], one: tuple[int, int, bool], other: tuple[int, int, bool]) -> str:
    if one == other:
        return " X "
    (node, number, is_card), (other_node, other_number, other_is_card) = one, other
    if is_card and other_is_card:
        peers = profile["gpus"]["count"] - 1
        # Without NVSwitches, a card shares its links among its peers.
        return f"NV{profile['gpus']['nvlinks'] // (1 if profile['nvswitches']['count'] else peers)}"
    if node != other_node:
        return "SYS"
    if number != other_number or is_card == other_is_card:
        return "NODE"
    return "PIX" if profile["nvswitches"]["count"] else "PHB"  # as the simulated bus has them: on one switch, or not


def peers(hardware: state.Hardware) -> list[str]:
    """`topo -p2p`: whether the cards may read each other's memory."""
    names = [f"GPU{card['index']}" for card in hardware["gpus"]]
    lines = [" \t\x1b[4m" + "\t".join(names) + "\t\x1b[0m"]
    for row, name in enumerate(names):
        cells = ["X" if row == column else "OK" for column in range(len(names))]
        lines.append(f" {name}\t" + "\t".join(cells) + "\t")
    return [*lines, _P2P_LEGEND]


def status(hardware: state.Hardware, cards: list[state.Gpu]) -> list[str]:
    """`nvlink --status`: the speed of each link; links through NVSwitches stay down until Fabric Manager is done.

    Of a card that has none, nothing is said at all.
    """
    card = hardware["profile"]["gpus"]
    lines: list[str] = []
    if not card["nvlinks"]:
        return lines
    for gpu in cards:
        lines.append(f"GPU {gpu['index']}: {card['name']} (UUID: {gpu['uuid']})")
        speed = "<inactive>" if gpu["fabric"] not in ("Completed", "N/A") else f"{card['nvlink_gb_s']} GB/s"
        lines += [f"\t Link {link}: {speed}" for link in range(card["nvlinks"])]
    return lines
