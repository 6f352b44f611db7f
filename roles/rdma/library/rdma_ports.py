#!/usr/bin/python
"""Ansible module: the RDMA ports of a host, what stands in the way of the GPUs' traffic, and what of it can be set."""

from __future__ import annotations

import os
import re
from typing import Any, Iterator, Sequence

from ansible.module_utils import provision_pci as pci
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provision_host import Change, HostError, absent_change, converge, file_change, read_text, run
from ansible.module_utils.provision_rdma import ETHERNET, Choice, Port, choose, distances, interface_of, ports

DOCUMENTATION = r"""
module: rdma_ports
short_description: Converges the RDMA ports of a host, and says what stands in the way of the GPUs' traffic
description:
  - Reads link layer, state, rate and MTU of each port, its place on the PCI bus beside the GPUs, the size of its read
    requests, relaxed ordering, addresses, priorities; what the IOMMU and the bridges (ACS) do with its traffic; and
    whether it can reach the memory of the GPUs (GPUDirect).
  - Loads the kernel's modules for it, now and at every boot. Sets the size of read requests and the MTU of RoCE
    interfaces where asked; a reboot loses both, so O(script) sets them again at boot.
  - Link state and rate are the cable's and the switch's. A port for the GPUs that is down fails or warns.
options:
  enabled:
    description: Whether RDMA is used where there is any.
    type: bool
    default: true
  address:
    description: The address at which this host's peers find it.
    type: str
    required: true
  interface:
    description: The interface of that address; empty to look it up.
    type: str
    default: ""
  devices:
    description: The only RDMA devices to use; empty to choose by where they sit.
    type: list
    elements: str
    default: []
  exclude:
    description: RDMA devices that are not for the GPUs.
    type: list
    elements: str
    default: []
  down_ports:
    description: What to do about a port for the GPUs that is down.
    type: str
    choices: [fail, warn]
    default: fail
  gpudirect:
    description: How ports reach the GPUs' memory. V(auto) takes dma-buf where driver and kernel have it, else peermem.
    type: str
    choices: [auto, dmabuf, peermem, none]
    default: auto
  open_driver:
    description: Whether the driver that a host without one will get has the open kernel modules.
    type: bool
    default: true
  max_read_request:
    description: Bytes that a port asks for in one read; 0 leaves what the firmware set.
    type: int
    choices: [0, 128, 256, 512, 1024, 2048, 4096]
    default: 0
  mtu:
    description: MTU of the interfaces of RoCE ports; 0 leaves them.
    type: int
    default: 0
  script:
    description: The program that sets again at boot what a reboot loses; there is none if nothing is to be set.
    type: path
    default: /etc/provision/rdma-ports.sh
  modules_file:
    description: The file that names the kernel's modules for the next boot.
    type: path
    default: /etc/modules-load.d/provision-rdma.conf
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - The provision project (@provision)
"""

EXAMPLES = r"""
- name: Prepare the RDMA ports
  rdma_ports:
    address: 10.1.4.72
    exclude: [mlx5_8]
    max_read_request: 4096
"""

RETURN = r"""
ports:
  description: What each port shows, by its name; of those not for the GPUs, only what does not change by itself.
  returned: success
  type: dict
near:
  description: For each GPU, the ports for the GPUs from the nearest to the farthest, each with its distance.
  returned: success
  type: dict
  sample: {"0": ["mlx5_0:1 PIX", "mlx5_1:1 NODE"]}
gpudirect:
  description: By what ports reach the memory of the GPUs; empty without RDMA or GPUs.
  returned: success
  type: str
notes:
  description: What stands in the way of the GPUs' traffic, each with what to do, as sentences.
  returned: success
  type: list
  elements: str
settings:
  description: Whether the script has anything to set at boot.
  returned: success
  type: bool
actions:
  description: What was done, or in check mode would be, as sentences.
  returned: always
  type: list
  elements: str
  sample: [Loaded the kernel's module nvidia_peermem.]
effects:
  description:
    - What each of the actions does to what runs, in their order. V(none); V(reload), systemd reads its units again;
      V(restart), a unit that runs stops; V(reboot); V(gpu_reset), it waits for a reset of the GPU.
  returned: always
  type: list
  elements: str
diff:
  description: One entry for each module, file and setting that differs.
  returned: always
  type: list
  elements: dict
"""

HEAD = "# Written by provision (role rdma).\n"
VERBS, MLX5 = "ib_uverbs", "mlx5_ib"  # by the one programs reach RDMA ports; by the other adapters of NVIDIA have any
PEERMEM = "nvidia_peermem"
DMABUF_KERNEL = (5, 12)  # the first whose RDMA takes the GPU's memory as a dma-buf
DRIVER = "/proc/driver/nvidia/version"


def loaded(name: str) -> bool:
    """Whether the kernel has a module."""
    return (pci.SYS / "module" / name).is_dir()


def load(name: str) -> None:
    """Load a module; a refusal says what it means."""
    done = run(["modprobe", name], check=False)
    if done.rc == 0:
        return
    said = (done.err.strip() or "no word").splitlines()[-1]
    hint = "Look at dmesg on this host."
    if name == PEERMEM:
        hint = (
            "It needs the driver loaded, and RDMA modules with the interface for peers' memory: DOCA-OFED's or "
            "Ubuntu's. With the kernel's plain ones, rdma_gpudirect: dmabuf and the driver's open modules."
        )
    raise HostError(f"The kernel does not load {name}: {said}. {hint}")


def dmabuf_trouble(open_driver: bool) -> str:
    """Why the GPUs' memory cannot be had as a dma-buf; empty if it can."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if found and (int(found[1]), int(found[2])) < DMABUF_KERNEL:
        return f"kernel {os.uname().release} is older than 5.12"
    driver = read_text(DRIVER)
    if driver is None:
        return "" if open_driver else "the driver will have NVIDIA's closed kernel modules"
    return "" if "Open Kernel Module" in driver else "the driver that is loaded has NVIDIA's closed kernel modules"


def way_to_memory(wanted: dict[str, Any]) -> str:
    """`dmabuf`, `peermem`, or empty: how ports are to reach the memory of the GPUs on this host."""
    asked = wanted["gpudirect"]
    if asked == "none" or not pci.gpus():
        return ""
    trouble = dmabuf_trouble(wanted["open_driver"])
    if asked == "auto":
        return "peermem" if trouble else "dmabuf"
    if asked == "dmabuf" and trouble:
        raise HostError(
            f"The ports cannot reach the memory of the GPUs by dma-buf: {trouble}. Have the open ones "
            "(driver_kernel_modules: open) and a current kernel; or set rdma_gpudirect: peermem."
        )
    return asked


def module_changes(wanted: dict[str, Any], names: Sequence[str]) -> Iterator[Change]:
    """The kernel's modules, for the next boot and now."""
    path = wanted["modules_file"]
    if not names:
        yield from absent_change(path)
        return
    yield from file_change(path, HEAD + "".join(f"{name}\n" for name in names))
    for name in names:
        if not loaded(name):
            sentence = f"Loaded the kernel's module {name}."
            yield Change(sentence, lambda name=name: load(name), f"module {name}", "not loaded\n", "loaded\n")


def mtu_of(port: Port, interface: str) -> int:
    """The MTU of an interface of a port; 0 where it cannot be read."""
    places = (pci.SYS / "class/net" / interface / "mtu", pci.device(port.pci) / "net" / interface / "mtu")
    return next((int(text) for text in (read_text(str(place)) for place in places) if text), 0)


def roce_interfaces(used: Sequence[Choice]) -> dict[str, Port]:
    """The interfaces of the RoCE ports, by name."""
    roce = [choice.port for choice in used if choice.port.link_layer == ETHERNET]
    return {name: port for port in roce for name in port.interfaces}


def adapters(used: Sequence[Choice]) -> list[str]:
    """Where the adapters of the ports sit on the bus; those made in software have no registers."""
    return sorted({choice.port.pci for choice in used} - {""})


def setting_changes(wanted: dict[str, Any], used: Sequence[Choice]) -> Iterator[Change]:
    """Read requests and MTU, where the inventory asks for them."""
    size, mtu = wanted["max_read_request"], wanted["mtu"]
    for address in adapters(used) if size else ():
        now = pci.max_read_request(address)
        if not now:
            raise HostError(f"The size of read requests of {address} cannot be read. Set rdma_max_read_request: 0.")
        if now != size:
            sentence = f"Set the read requests of {address} to {size} bytes (they were {now})."
            words = (f"read requests of {address}", f"{now}\n", f"{size}\n")
            yield Change(sentence, lambda address=address: pci.set_max_read_request(address, size), *words)
    for name, port in sorted(roce_interfaces(used).items()) if mtu else ():
        now = mtu_of(port, name)
        if now != mtu:
            command = ["ip", "link", "set", "dev", name, "mtu", str(mtu)]
            sentence = f"Set the MTU of {name} to {mtu} (it was {now})."
            # The card's queues are made anew: what is on the wire at that moment is lost.
            yield Change(
                sentence, lambda command=command: run(command), f"MTU of {name}", f"{now}\n", f"{mtu}\n", "restart"
            )


def script_text(wanted: dict[str, Any], used: Sequence[Choice]) -> str:
    """What a reboot loses, as a shell script; empty for nothing."""
    lines = []
    if wanted["max_read_request"]:
        value = pci.read_request_bits(wanted["max_read_request"]) << 12
        addresses = adapters(used)
        lines += [f"setpci -s {address} CAP_EXP+8.w={value:x}:7000 || failed=1\n" for address in addresses]
    if wanted["mtu"]:
        names = sorted(roce_interfaces(used))
        lines += [f"ip link set dev {name} mtu {wanted['mtu']} || failed=1\n" for name in names]
    why = "# A reboot loses these settings of the RDMA ports.\n"
    return f"#!/bin/sh\n{HEAD}{why}failed=0\n{''.join(lines)}exit $failed\n" if lines else ""


def down_ports(used: Sequence[Choice]) -> Iterator[str]:
    """The ports for the GPUs that are down, as sentences."""
    for choice in used:
        port = choice.port
        if not port.is_up:
            yield (
                f"{port.name} ({port.link_layer}, {choice.why}) is {port.state or 'in no state'}, physically "
                f"{port.physical or 'unknown'}: look at its cable and at the switch (ibstat {port.device})."
            )


def refuse_down(used: Sequence[Choice]) -> None:
    """With a port less, replicas that span hosts are slower than anybody was told."""
    sentences = " ".join(down_ports(used))
    if sentences:
        names = ", ".join(choice.port.name for choice in used if not choice.port.is_up)
        raise HostError(
            f"{sentences} To serve without, until it is repaired: rdma_exclude: [{names}] for this host; or "
            "rdma_down_ports: warn."
        )


def obstacles(used: Sequence[Choice]) -> Iterator[str]:
    """What slows down or hinders traffic between ports and GPUs, each with what to do."""
    cards = pci.gpus()
    addresses = sorted({*adapters(used), *cards}) if used and cards else []
    kinds = {address: pci.iommu(address) for address in addresses}
    translated = [address for address, kind in kinds.items() if kind not in (pci.NO_IOMMU, "identity")]
    if translated:
        yield (
            f"The IOMMU translates ({kinds[translated[0]]}) what {len(translated)} of the GPUs and RDMA ports read and "
            "write, which slows GPUDirect down or breaks it. On a host without virtual machines boot with iommu=pt "
            "(GRUB_CMDLINE_LINUX in /etc/default/grub, update-grub, reboot), or turn it off in the firmware."
        )
    above = sorted({bridge for address in addresses for bridge in pci.bridges(pci.place(address))})
    redirecting = [bridge for bridge in above if pci.redirects(bridge)]
    if redirecting:
        yield (
            f"PCI bridges send what passes between GPUs and RDMA ports up to the processor (ACS): "
            f"{', '.join(redirecting)}. GPUDirect then runs at a fraction of its speed. Turn ACS off in the firmware; "
            "or at each boot, for each of them: setpci -s ADDRESS ECAP_ACS+6.w=0."
        )


def priorities(interface: str) -> dict[str, str]:
    """Which priorities are without loss (PFC), and what a packet's priority is read from; as the tools tell it."""
    done = run(["mlnx_qos", "-i", interface], check=False, timeout_s=10)
    if done.rc == 0:
        trust = re.search(r"Priority trust state:\s*(\S+)", done.out)
        enabled = re.search(r"^\s*enabled((?:\s+[01]){8})", done.out, re.MULTILINE)
        lossless = [str(n) for n, bit in enumerate(enabled[1].split()) if bit == "1"] if enabled else []
        return {"trust": trust[1] if trust else "unknown", "pfc": ",".join(lossless) or "none"}
    done = run(["dcb", "pfc", "show", "dev", interface, "prio-pfc"], check=False, timeout_s=10)
    if done.rc == 0:
        return {"trust": "unknown", "pfc": ",".join(re.findall(r"(\d):on", done.out)) or "none"}
    return {"trust": "unknown", "pfc": "unknown"}


def active_mtus() -> dict[str, int]:
    """The MTU that each port's link has agreed on, by name, as ibv_devinfo tells it."""
    found: dict[str, int] = {}
    device = number = ""
    for line in run(["ibv_devinfo"], check=False, timeout_s=30).out.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        device = value if name == "hca_id" else device
        number = value if name == "port" else number
        if name == "active_mtu" and re.match(r"\d", value):  # of a port that is down it may be no number
            found[f"{device}:{number}"] = int(value.split()[0])
    return found


def shown(choice: Choice, mtus: dict[str, int], wanted: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of one port; what is converged is told by its changes."""
    port = choice.port
    record: dict[str, Any] = {
        "used": choice.used,
        "why": choice.why,
        "pci": port.pci,
        "numa": pci.word(port.pci, "numa_node"),
        "link_layer": port.link_layer,
    }
    if not choice.used:
        return record
    record.update(
        state=port.state,
        rate=port.rate,
        active_mtu=mtus.get(port.name, 0),
        relaxed_ordering=pci.relaxed_ordering(port.pci),
    )
    if not wanted["max_read_request"]:
        record["max_read_request"] = pci.max_read_request(port.pci)
    if not wanted["mtu"] or port.link_layer != ETHERNET:
        record["mtu"] = {name: mtu_of(port, name) for name in port.interfaces}
    if port.link_layer == ETHERNET:
        record["gids"] = {
            str(gid.index): f"{gid.kind} {gid.address.ipv4_mapped or gid.address} {gid.interface}".strip()
            for gid in port.gids
        }
        record["priorities"] = {name: priorities(name) for name in port.interfaces}
    return record


def ordered(used: Sequence[Choice]) -> dict[str, list[str]]:
    """For each GPU the ports, nearest first."""
    table = distances(pci.gpus(), [choice.port for choice in used])
    return {
        str(index): [f"{name} {pci.DISTANCES[far]}" for name, far in sorted(row.items(), key=lambda item: item[1])]
        for index, row in enumerate(table)
    }


class Look:
    """What was seen on the way, for the facts."""

    def __init__(self) -> None:
        self.choices: list[Choice] = []
        self.way = ""

    @property
    def used(self) -> list[Choice]:
        return [choice for choice in self.choices if choice.used]


def plan(wanted: dict[str, Any], look: Look) -> Iterator[Change]:
    """The modules, then the ports that they brought, then what is set on them."""
    is_mlx5 = wanted["enabled"] and pci.has_rdma_adapter()
    is_there = is_mlx5 or (wanted["enabled"] and bool(ports()))
    look.way = way_to_memory(wanted) if is_there else ""
    names = [VERBS] * is_there + [MLX5] * is_mlx5 + [PEERMEM] * (look.way == "peermem")
    yield from module_changes(wanted, names)
    if wanted["enabled"]:
        look.choices = choose(ports(), wanted, wanted["interface"] or interface_of(wanted["address"]))
    text = script_text(wanted, look.used)
    yield from file_change(wanted["script"], text) if text else absent_change(wanted["script"])
    yield from setting_changes(wanted, look.used)
    if wanted["down_ports"] == "fail":
        refuse_down(look.used)


def facts(wanted: dict[str, Any], look: Look) -> dict[str, Any]:
    """What the ports show now."""
    mtus = active_mtus() if look.used else {}
    return {
        "ports": {choice.port.name: shown(choice, mtus, wanted) for choice in look.choices},
        "near": ordered(look.used),
        "gpudirect": look.way if look.used else "",
        "notes": [*down_ports(look.used), *obstacles(look.used)],
        "settings": bool(script_text(wanted, look.used)),
    }


def main() -> None:
    names = {"type": "list", "elements": "str", "default": []}
    spec = {
        "enabled": {"type": "bool", "default": True},
        "address": {"type": "str", "required": True},
        "interface": {"type": "str", "default": ""},
        "devices": names,
        "exclude": names,
        "down_ports": {"type": "str", "choices": ["fail", "warn"], "default": "fail"},
        "gpudirect": {"type": "str", "choices": ["auto", "dmabuf", "peermem", "none"], "default": "auto"},
        "open_driver": {"type": "bool", "default": True},
        "max_read_request": {"type": "int", "choices": [0, 128, 256, 512, 1024, 2048, 4096], "default": 0},
        "mtu": {"type": "int", "default": 0},
        "script": {"type": "path", "default": "/etc/provision/rdma-ports.sh"},
        "modules_file": {"type": "path", "default": "/etc/modules-load.d/provision-rdma.conf"},
    }
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    wanted, look = module.params, Look()

    def found() -> dict[str, Any]:
        told = facts(wanted, look)
        for sentence in told["notes"]:
            module.warn(sentence)
        return told

    converge(module, lambda: plan(wanted, look), found)


if __name__ == "__main__":
    main()
