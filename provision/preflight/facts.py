"""What a host told of itself, typed. Sizes are bytes unless a name says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PciDevice:
    """A device of NVIDIA's on the bus: `kind` is its class."""

    address: str
    kind: str
    device: str
    numa: str


@dataclass(frozen=True)
class Base:
    """What the stage preflight looks at, too (`provision_look`). `free` by path."""

    system: Mapping[str, str] = field(default_factory=dict)
    free: Mapping[str, int] = field(default_factory=dict)
    memory: int = 0
    nvidia: tuple[PciDevice, ...] = ()
    secure_boot: bool = False
    nouveau: bool = False
    driver_loaded: bool = False
    bootstrapped: bool = False


@dataclass(frozen=True)
class Machine:
    """The machine by itself. None: it would not say, or it was not asked."""

    boot_id: str = ""
    machine_id: str = ""
    time_service: str = ""
    synchronised: bool | None = None
    reboot_required: tuple[str, ...] = ()
    cmdline: str = ""
    headers: bool = True
    headers_offered: bool | None = None


@dataclass(frozen=True)
class Place:
    """Where a path lies. `kind`: nvme, ssd, rotational, network, memory, virtual (who knows), unknown."""

    path: str
    mount: str
    file_system: str
    size: int
    free: int
    taken: int
    disks: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Interface:
    """A network interface."""

    name: str
    mtu: int
    up: bool
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Net:
    """Networks."""

    interfaces: tuple[Interface, ...] = ()
    name_servers: tuple[str, ...] = ()
    name: str = ""
    resolves_itself: bool = True


@dataclass(frozen=True)
class Pci:
    """What may lead traffic between devices astray: how the IOMMU treats GPUs, switches that redirect."""

    iommu: tuple[str, ...] = ()
    acs_redirect: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver shows."""

    index: int
    name: str
    address: str
    memory_mib: int
    mig: bool
    ecc: bool
    uncorrected: int
    remap_pending: bool
    remap_failed: bool
    fabric: str


@dataclass(frozen=True)
class Links:
    """NVLinks of one GPU."""

    up: int
    down: int


@dataclass(frozen=True)
class Process:
    """A process that uses GPUs."""

    pid: int
    program: str
    user: str
    unit: str
    gpus: tuple[int, ...]
    memory_mib: int


@dataclass(frozen=True)
class Nvidia:
    """The loaded driver and what it says; `error` is what nvidia-smi answered instead."""

    loaded: str = ""
    is_open: bool = True
    fabric_manager: str = ""
    processes: tuple[Process, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    error: str = ""
    links: tuple[Links, ...] = ()
    topology: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class RdmaPort:
    """A port of an RDMA adapter. `rate` is Gbit/s; `mtu` 0 where nothing on the host can tell it."""

    device: str
    port: int
    state: str
    physical: str
    rate: float
    link_layer: str
    firmware: str
    adapter: str
    address: str
    numa: str
    interfaces: tuple[str, ...]
    mtu: int

    @property
    def is_up(self) -> bool:
        """Whether it carries traffic."""
        return self.state == "ACTIVE"


@dataclass(frozen=True)
class Rdma:
    """RDMA ports, and what GPUDirect could go by."""

    ports: tuple[RdmaPort, ...] = ()
    peermem: bool = False
    dma_buf_kernel: bool = False


@dataclass(frozen=True)
class Package:
    """An installed package of the driver."""

    version: str
    held: bool


@dataclass(frozen=True)
class Packages:
    """The driver's packages by name, who changed them last, and what apt is up to.

    `not_excluded` are neither held nor excluded from upgrades.
    """

    driver: Mapping[str, Package] = field(default_factory=dict)
    last_change: str = ""
    broken: tuple[str, ...] = ()
    interrupted: bool = False
    lock_holder: str = ""
    unattended: bool = False
    not_excluded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reached:
    """An address that was tried. `failure` is empty where it answered; `named` says who names it."""

    use: str
    named: str
    url: str
    proxy: str
    failure: str
    said: str
    bytes: int


@dataclass(frozen=True)
class Listener:
    """A process that listens on a port which Ray or vLLM take."""

    port: int
    wanted_by: str
    pid: int
    program: str
    user: str
    unit: str


@dataclass(frozen=True)
class Commit:
    """A commit of the model that is on the host: how many of its files are there as they should be."""

    commit: str
    revision: str
    files: int
    good: int
    bytes: int


@dataclass(frozen=True)
class Weights:
    """What is there of the model; `partial` bytes lie half downloaded."""

    commits: tuple[Commit, ...] = ()
    partial: int = 0


@dataclass(frozen=True)
class Busy:
    """A run of this project that is changing the host."""

    pid: int = 0
    command: str = ""
    since: str = ""


@dataclass(frozen=True)
class Facts:
    """All that a host told. `begin` and `end` are its own clock; `errors` say why a section is empty."""

    begin: float
    end: float
    errors: Mapping[str, str] = field(default_factory=dict)
    base: Base = field(default_factory=Base)
    busy: Busy = field(default_factory=Busy)
    machine: Machine = field(default_factory=Machine)
    disks: Mapping[str, Place] = field(default_factory=dict)
    net: Net = field(default_factory=Net)
    pci: Pci = field(default_factory=Pci)
    nvidia: Nvidia = field(default_factory=Nvidia)
    rdma: Rdma = field(default_factory=Rdma)
    packages: Packages = field(default_factory=Packages)
    reach: tuple[Reached, ...] = ()
    ports: tuple[Listener, ...] = ()
    weights: Weights = field(default_factory=Weights)
