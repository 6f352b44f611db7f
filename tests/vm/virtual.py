"""Virtual machines with a kernel and a boot loader of their own, under software emulation, so they need no /dev/kvm.

Slow, and the one place where a kernel can refuse what a container only pretends. They stand on a bridge such as the lab's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from provision.lab import base as lab_base
from provision.lab import login, machine, network
from provision.lab.container import identify, write
from provision.lab.network import Network
from provision.lab.process import call
from provision.state import cache_dir

GRUB = "grub-pc-bin grub2-common"  # without grub-pc, which would ask for a disk while there is none
SIZE = 6 << 30  # bytes of the disk
OFFSET = 2 << 20  # bytes before its file system, where the boot loader goes
MEMORY_MIB = 1536
BOOT_S = 300  # under emulation, beside another one that boots
FILES = {
    "etc/fstab": "LABEL=root / ext4 errors=remount-ro 0 1\n",
    "etc/default/grub": 'GRUB_TIMEOUT=0\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX="console=ttyS0"\n',
}
# The first boot, with the kernel from outside: a program instead of systemd, which leaves a disk that boots by itself.
FIRST_BOOT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
grub-install /dev/vda && update-grub && rm /first-boot && echo "THE DISK BOOTS"
sync
mount -o remount,ro /
reboot -f
"""


def base_disk() -> Path:
    """A disk that boots a bare Debian server, made first if this machine has none such (some minutes)."""
    sources = machine.debian_sources()
    made_by = (Path(source).read_text(encoding="utf-8") for source in (__file__, lab_base.__file__))
    parts = (sources, machine.RELEASE, *made_by)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
    cache = cache_dir() / "vm"
    disk = cache / f"disk-{digest}.img"
    if not disk.exists():
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        new = cache / "new.img"
        _make_disk(cache / "tree", new, sources)
        shutil.rmtree(cache / "tree")
        new.rename(disk)
    return disk


def _make_disk(tree: Path, disk: Path, sources: str) -> None:
    install = f'chroot "$1" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends {GRUB}'
    words = [
        "--quiet",
        "--mode=root",
        "--variant=apt",
        f"--include={lab_base.PACKAGES},linux-image-amd64",
        f"--customize-hook={install}",
    ]
    call(["mmdebstrap", *words, machine.RELEASE, str(tree), "-"], stdin=sources)
    lab_base.use_sources(tree, sources)
    lab_base.add_login(tree, call)
    for name, text in FILES.items():
        write(tree / name, text)
    write(tree / "first-boot", FIRST_BOOT, 0o755)
    with disk.open("wb") as file:
        file.truncate(SIZE)
    call(["sfdisk", "--quiet", str(disk)], stdin=f"label: dos\nstart={OFFSET // 512}, type=83, bootable\n")
    label = ["-L", "root", "-E", f"offset={OFFSET}"]
    call(["mke2fs", "-q", "-F", "-t", "ext4", *label, "-d", str(tree), str(disk), f"{(SIZE - OFFSET) >> 10}k"])
    kernel, initrd = tree / "vmlinuz", tree / "initrd.img"
    append = "root=/dev/vda1 rw console=ttyS0 init=/first-boot"
    boot = ["-kernel", str(kernel.resolve()), "-initrd", str(initrd.resolve()), "-append", append, "-no-reboot"]
    done = subprocess.run(
        [*_qemu(disk), "-serial", "stdio", *boot], capture_output=True, text=True, check=False, timeout=BOOT_S
    )
    assert "THE DISK BOOTS" in done.stdout, done.stdout[-4000:] + done.stderr


def _qemu(disk: Path) -> list[str]:
    return [
        "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-smp", "2", "-m", str(MEMORY_MIB),
        "-display", "none", "-monitor", "none", "-device", "virtio-rng-pci",
        "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe",
    ]  # fmt: skip


@dataclass
class Virtual:
    """One virtual machine: where it is kept, how it is reached."""

    name: str
    number: int
    directory: Path
    net: Network
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return str(self.net.address(self.number))

    @property
    def cable(self) -> str:
        """The machine's end of its network cable, by a name that goes when the network goes."""
        return f"vb-{self.net.fleet}-{self.number}"

    def furnish(self, base: Path, key: str) -> None:
        """Its own disk: the base, with a name, an address, keys."""
        disk, root = self.directory / "disk.img", self.directory / "root"
        root.mkdir()
        call(["cp", "--sparse=always", "--reflink=auto", str(base), str(disk)])
        call(["mount", "-o", f"loop,offset={OFFSET}", str(disk), str(root)])
        try:
            identify(root, self.name, self.directory, key, machine.name_servers())
            write(root / "etc/systemd/network/10-wired.network", self._network())
        finally:
            call(["umount", str(root)])

    def _network(self) -> str:
        return (
            f"[Match]\nType=ether\n\n[Link]\nMTUBytes={network.mtu()}\n\n"
            f"[Network]\nAddress={self.address}/{self.net.subnet.prefixlen}\nGateway={self.net.gateway}\nDHCP=no\n"
        )

    def power_on(self) -> None:
        call(["ip", "tuntap", "add", "dev", self.cable, "mode", "tap"])
        call(["ip", "link", "set", self.cable, "master", self.net.bridge, "mtu", str(network.mtu()), "up"])
        card = ["-netdev", f"tap,id=net,ifname={self.cable},script=no,downscript=no"]
        card += ["-device", f"virtio-net-pci,netdev=net,mac=52:54:00:00:00:{self.number + 1:02x}"]
        console = ["-serial", f"file:{self.directory / 'console.log'}"]
        with (self.directory / "qemu.log").open("wb") as log:
            self.process = subprocess.Popen([*_qemu(self.directory / "disk.img"), *card, *console], stderr=log)

    def power_off(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()


class Virtuals:
    """Machines on one network, and a login to each."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.directory = directory
        self.net = network.ensure(f"{os.getpid() & 0xFFFFFFFF:08x}", None)
        self.all = {name: Virtual(name, number, directory / name, self.net) for number, name in enumerate(names)}

    def up(self) -> None:
        """Make and boot all, and wait until they let us in."""
        base = base_disk()
        login.make_keys(self.directory)
        key = (self.directory / f"{login.KEY}.pub").read_text(encoding="ascii")
        for each in self.all.values():
            login.make_host_key(each.directory, each.name)
            each.furnish(base, key)
        login.trust(self.directory, list(self.all.values()))
        for each in self.all.values():
            each.power_on()
        for name in self.all:
            self.wait_for(name)

    def wait_for(self, name: str) -> None:
        until = time.monotonic() + BOOT_S
        while self.ssh(name, "systemctl is-system-running --wait", code=None).returncode not in (0, 1):
            console = self.all[name].directory / "console.log"
            assert time.monotonic() < until, console.read_text(errors="replace")[-3000:]
            time.sleep(1)

    def ssh(self, name: str, script: str, code: int | None = 0, root: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell script there in a new login."""
        how = login.ssh_command(self.directory, self.all[name], "-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
        shell = "sudo bash -s" if root else "bash -s"
        done = subprocess.run([*how, shell], input=script, capture_output=True, text=True, check=False, timeout=600)
        assert code is None or done.returncode == code, f"{name}: {script}\n{done.stdout}\n{done.stderr}"
        return done

    def sh(self, name: str, script: str, root: bool = True) -> str:
        return self.ssh(name, script, root=root).stdout.strip()

    def down(self) -> None:
        for each in self.all.values():
            each.power_off()
        network.remove(self.net.fleet)


@contextlib.contextmanager
def virtuals(directory: Path, names: Sequence[str]) -> Iterator[Virtuals]:
    """Machines that are gone afterwards, whatever happened."""
    machine.require_tools()
    made = Virtuals(directory, names)
    try:
        made.up()
        yield made
    finally:
        made.down()
