"""A simulated fleet: brought up, found again, taken down.

What is wanted is written to the fleet's directory first and made second, every step leaves alone what stands already,
and the directory goes last. So `up` after a crash of `up` goes on, and `down` at any moment finds everything.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from provision.errors import LabError
from provision.lab import base, cgroup, container, login, machine, network, overlay, plan, services
from provision.lab.container import Bind, Spec
from provision.lab.host import LabHost
from provision.lab.network import Network
from provision.lab.plan import HostPlan
from provision.state import cache_dir, state_dir

_REPLICA = "lab"  # the group of hosts that no inventory names
_INVENTORY = "inventory"  # written first: whose fleet it is
_GONE = ".gone-"


@dataclass(frozen=True)
class LabFleet:
    """A fleet that was brought up: `directory` holds all of it, `overlay` says how to reach it."""

    id: str
    inventory: Path
    directory: Path
    gateway: str
    hosts: dict[str, LabHost]

    @property
    def overlay(self) -> Path:
        """The inventory source to add to the user's own."""
        return self.directory / "overlay"


def fleets() -> list[LabFleet]:
    """Every fleet of this user that was brought up and not taken down."""
    return [fleet for directory in _directories() if (fleet := _read(directory))]


def inventories() -> list[Path]:
    """The inventories of this user's fleets, half-made ones included: what `down` could take away."""
    return [Path((directory / _INVENTORY).read_text(encoding="utf-8")) for directory in _directories()]


def find(inventory: Path) -> LabFleet | None:
    """The fleet of this inventory, if it was brought up; a fleet's own overlay names it as well."""
    named = inventory.resolve()
    return next((fleet for fleet in fleets() if named in {fleet.inventory, fleet.overlay.resolve()}), None)


def up(inventory: Path, *, hosts: int | None = None, report: Callable[[str], None]) -> LabFleet:
    """Bring the fleet of this inventory up, or what is missing of it; returns when every host answers over SSH.

    `hosts` makes so many alike hosts instead of the inventory's own. `report` is told, in words, what goes on.
    """
    machine.require_tools()
    wanted = plan.read(inventory, hosts)
    with _locked(_id(inventory), report) as directory:
        _write(directory / _INVENTORY, str(inventory.resolve()))
        tree = base.ensure(report)
        report("Connecting the network")
        net = _network(directory)
        login.make_keys(directory)
        report("Starting the package repository and the hub")
        services.prepare(directory)
        served = _services(directory, net)
        made = _hosts(directory, net, tree, wanted)
        asleep = [host for host in made if not host.on]
        report(f"Booting {len(asleep)} of {len(made)} hosts")
        for host in asleep:
            host.power_on()
        urls = {service.name: f"http://{net.gateway}:{service.port}" for service in served}
        common = overlay.world(directory, f"{urls['apt']}/apt", urls["hub"])
        login.trust(directory, made)
        login.await_answers(directory, made, report, seconds=login.BOOT if asleep else login.AWAKE)
        rehearsed = {host.name: host.rehearsed for host in wanted}
        overlay.write(directory, made, common, _REPLICA if hosts is not None else None, rehearsed)
        fleet = _read(directory)
    if fleet is None:
        raise LabError(f"The fleet of {inventory} was taken down while it came up.")
    return fleet


def down(inventory: Path) -> bool:
    """Take everything of the fleet away, whole or half made; False when there was nothing."""
    if not (_top() / _id(inventory)).exists():
        return False
    machine.require_tools()
    base.forget_killed_build()
    with _locked(_id(inventory), lambda _: None) as directory:
        shutil.rmtree(directory / "overlay", ignore_errors=True)
        cgroup.kill(directory.name)
        for path in _host_directories(directory):
            container.discard(path)
        cgroup.remove(directory.name)
        network.remove(directory.name)
        gone = directory.with_name(_GONE + directory.name)
        directory.rename(gone)  # whole or not at all: half a fleet's keys would be worse than none
        shutil.rmtree(gone)
    return True


def _top() -> Path:
    top = state_dir() / "lab"
    top.mkdir(exist_ok=True)
    return top


def _directories() -> list[Path]:
    return [path.parent for path in sorted(_top().glob(f"[!.]*/{_INVENTORY}"))]


def _id(inventory: Path) -> str:
    """Eight hexadecimal digits for an inventory and a state directory: fleets of two users never meet."""
    return hashlib.sha256(f"{_top().resolve()}\0{inventory.resolve()}".encode()).hexdigest()[:8]


def _read(directory: Path) -> LabFleet | None:
    if not (directory / "overlay").is_dir():
        return None
    hosts = [host for path in _host_directories(directory) if (host := container.read(path))]
    hosts.sort(key=_number)
    inventory = Path((directory / _INVENTORY).read_text(encoding="utf-8"))
    subnet = IPv4Network(json.loads((directory / "network.json").read_text(encoding="ascii"))["subnet"])
    gateway = str(Network(directory.name, subnet).gateway)
    return LabFleet(directory.name, inventory, directory, gateway, {host.name: host for host in hosts})


def _host_directories(directory: Path) -> list[Path]:
    return sorted((directory / "hosts").glob("*/"))


@contextlib.contextmanager
def _locked(fleet: str, report: Callable[[str], None]) -> Iterator[Path]:
    """The fleet's directory, made if need be, for one `up` or `down` at a time."""
    directory = _top() / fleet
    shutil.rmtree(directory.with_name(_GONE + fleet), ignore_errors=True)
    while True:
        handle = _open(directory)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report("Waiting for another `provision lab` on this fleet")
                fcntl.flock(handle, fcntl.LOCK_EX)
            if _still_there(directory, handle):
                yield directory
                return
        finally:
            os.close(handle)


def _open(directory: Path) -> int:
    """A descriptor of the directory, made if need be; who takes the fleet down may move it away at any moment."""
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            return os.open(directory, os.O_RDONLY | os.O_DIRECTORY)


def _still_there(directory: Path, handle: int) -> bool:
    """Whether the open directory is the one of this name: who held its lock may have taken it away."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(directory))
    except FileNotFoundError:
        return False


def _network(directory: Path) -> Network:
    record = directory / "network.json"
    known = json.loads(record.read_text(encoding="ascii")) if record.exists() else {}
    net = network.ensure(directory.name, IPv4Network(known["subnet"]) if known else None)
    _write(record, json.dumps({"ports": {}, **known, "subnet": str(net.subnet)}))
    _write(directory / "resolv.conf", machine.name_servers())
    return net


def _services(directory: Path, net: Network) -> tuple[services.Service, ...]:
    record = directory / "network.json"
    known = json.loads(record.read_text(encoding="ascii"))
    served = services.assign(str(net.gateway), known["ports"])
    _write(record, json.dumps({**known, "ports": {service.name: service.port for service in served}}))
    services.ensure(directory.name, directory, str(net.gateway), served)
    return served


def _hosts(directory: Path, net: Network, tree: Path, wanted: list[HostPlan]) -> list[LabHost]:
    """Write down what each host is made from, and remove hosts that are wanted no more."""
    names = {each.name for each in wanted}
    numbers: dict[str, int] = {}
    for path in _host_directories(directory):
        host = container.read(path)
        if host is None or host.name not in names:
            container.discard(path)
        else:
            numbers[host.name] = _number(host)
    free = iter(number for number in range(network.MOST_HOSTS) if number not in numbers.values())
    return [
        _host(directory, net, tree, each, numbers[each.name] if each.name in numbers else next(free)) for each in wanted
    ]


def _number(host: LabHost) -> int:
    """The host's place in the fleet, kept for life."""
    return int(host.machine.rpartition("-")[2])


def _host(directory: Path, net: Network, tree: Path, wanted: HostPlan, number: int) -> LabHost:
    path = directory / "hosts" / wanted.name
    existing = container.read(path)
    if existing:
        _refuse_other_hardware(existing, wanted)
        return existing
    cache = cache_dir() / "lab" / "uv"
    cache.mkdir(parents=True, exist_ok=True)
    spec = Spec(
        name=wanted.name,
        machine=f"{directory.name}-{number}",
        group=f"{directory.name}/hosts/{wanted.name}",
        profile=wanted.profile,
        address=str(net.address(number)),
        prefix=net.subnet.prefixlen,
        gateway=str(net.gateway),
        bridge=net.bridge,
        mtu=network.mtu(),
        base=str(tree),
        disk_size=wanted.disk_size,
        memory=wanted.memory,
        authorized_key=(directory / "ssh_key.pub").read_text(encoding="ascii"),
        binds=(
            Bind(str(cache), overlay.CACHE_ON_HOST, writable=True),
            *(Bind(link, link) for link in machine.python_index().find_links),
        ),
    )
    login.make_host_key(path, wanted.name)
    return container.create(spec, path)


def _refuse_other_hardware(host: LabHost, wanted: HostPlan) -> None:
    if host.profile != wanted.profile:
        raise LabError(
            f"{host.name} was made with the hardware profile {host.profile}; the inventory now says {wanted.profile}.\n"
            "  A host keeps its hardware. Make the fleet anew: `provision lab down`, then `provision lab up`."
        )


def _write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
