"""A host's disk: a sparse image of bounded size, and the host's root laid over the shared base tree.

The image holds only what the host wrote. Deleting inside the host gives the space back to the machine.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from provision.errors import LabError
from provision.lab import process


def create(image: Path, size: int) -> None:
    """Make the image, of at most `size` bytes, unless it is there."""
    if image.exists():
        return
    new = image.with_name(f".{image.name}.new")
    with new.open("wb") as file:
        file.truncate(size)
    # What is left uninitialised is zero already, and the host is not to wait for a background thread that writes it.
    options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
    process.call(["mkfs.ext4", "-q", "-m", "0", "-E", options, str(new)])
    new.replace(image)


def mount(image: Path, base: Path, disk: Path, root: Path) -> None:
    """Mount the image at `disk` and the host's root directory at `root`, in this process's mount name space."""
    disk.mkdir(exist_ok=True)
    root.mkdir(exist_ok=True)
    process.call(["mount", "-o", "loop,discard,noatime", str(image), str(disk)])
    (disk / "data").mkdir(exist_ok=True)  # the host's /data: ext4 itself, which can hold swap as no overlay can
    upper, work = disk / "upper", disk / "work"
    # A volatile overlay refuses the work directory of an earlier one; and it spares the machine every sync in a host,
    # which only a crash of the machine itself would miss.
    shutil.rmtree(work, ignore_errors=True)
    for directory in (upper, work):
        directory.mkdir(exist_ok=True)
    upper.chmod(0o755)
    layers = f"lowerdir={base},upperdir={upper},workdir={work}"
    process.call(["mount", "-t", "overlay", "overlay", "-o", f"{layers},redirect_dir=on,volatile", str(root)])


def wait_until_free(image: Path, *, timeout: float = 30) -> None:
    """Wait until no loop device holds the image any more: two mounts of one file system would destroy it."""
    deadline = time.monotonic() + timeout
    while device := _loop_device(image):
        if time.monotonic() > deadline:
            raise LabError(f"{device} still holds {image}. `losetup --detach {device}` frees it.")
        time.sleep(0.02)


def _loop_device(image: Path) -> str | None:
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = entry.read_text(encoding="utf-8").rstrip("\n")
        except OSError:  # detached between the listing and the reading
            continue
        if backing.removesuffix(" (deleted)") == os.fspath(image):
            return f"/dev/{entry.parts[3]}"
    return None


def used(image: Path) -> int:
    """Bytes that the image takes on the machine's disk."""
    return image.stat().st_blocks * 512
