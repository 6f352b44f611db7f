"""The FUSE server of one host: `python -m provision.lab.hardware.fusefs STATE_FILE MOUNTPOINT`, in the foreground.

What is in a file is asked of the state at every look, so a change by any simulated program, fault or power cycle is
seen at once. Which files there are, with their modes, the kernel may remember for a fifth of a second, since a path of
eight parts would otherwise be asked for part by part, a hundred times as slow as in a real /sys.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mfusepy

from provision.lab.hardware import state, tree
from provision.lab.hardware.nodes import Directory, Link, Node, Registers, Setting

REMEMBERED_S = 0.2


class HardwareFiles(mfusepy.Operations):  # type: ignore[misc]  # mfusepy carries no types
    """File operations on the tree of the host whose state lies in `state_file`."""

    use_ns = True

    def __init__(self, state_file: Path) -> None:
        self._state_file = str(state_file)
        self._built: tuple[tuple[int, int], Directory] = ((0, 0), {})

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:  # noqa: ARG002  # the interface's names
        """Type, mode and size of a node."""
        node = self._find(path)
        if isinstance(node, dict):
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if isinstance(node, Link):
            return {"st_mode": stat.S_IFLNK | 0o777, "st_nlink": 1, "st_size": len(node.target)}
        mode = node.mode if isinstance(node, Setting) else 0o644 if isinstance(node, Registers) else 0o444
        return {
            "st_mode": stat.S_IFREG | mode,
            "st_nlink": 1,
            "st_size": len(_content(node)) if isinstance(node, (bytes, Registers)) else 4096,
        }

    def readdir(self, path: str, fh: int) -> Iterable[str]:  # noqa: ARG002
        """The names in a directory."""
        node = self._find(path)
        if not isinstance(node, dict):
            raise OSError(errno.ENOTDIR, path)
        return [".", "..", *node]

    def readlink(self, path: str) -> str:
        """Where a symbolic link points."""
        node = self._find(path)
        if not isinstance(node, Link):
            raise OSError(errno.EINVAL, path)
        return node.target

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:  # noqa: ARG002
        """A piece of a file."""
        return _content(self._find(path))[offset : offset + size]

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:  # noqa: ARG002
        """`>` of a shell truncates first; kernel files take no notice."""
        self._find(path)
        return 0

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:  # noqa: ARG002
        """Set a knob or a register, or refuse as the kernel does."""
        node = self._find(path)
        if not isinstance(node, (Setting, Registers)):
            raise OSError(errno.EACCES, path)
        try:
            with state.Change(self._state_file) as hardware:
                if isinstance(node, Registers):
                    node.write(hardware, offset, data)
                else:
                    node.write(hardware, data.decode())
        except ValueError as refused:
            raise OSError(errno.EINVAL, path) from refused
        return len(data)

    def _find(self, path: str) -> Node:
        try:
            return tree.find(self._tree(), path)
        except KeyError:
            raise OSError(errno.ENOENT, path) from None

    def _tree(self) -> Directory:
        now = os.stat(self._state_file)
        version = (now.st_ino, now.st_mtime_ns)
        known, built = self._built
        if known != version:
            built = tree.build(state.read(self._state_file))
            self._built = (version, built)
        return built


def _content(node: Node) -> bytes:
    text = node.text if isinstance(node, Setting) else node.data if isinstance(node, Registers) else node
    return text if isinstance(text, bytes) else str(text).encode()


def main() -> None:
    """Serve until SIGTERM, then unmount."""
    parser = argparse.ArgumentParser(description="Show the simulated hardware of one host as a file system.")
    parser.add_argument("state_file", type=Path)
    parser.add_argument("mountpoint", type=Path)
    arguments = parser.parse_args()
    mfusepy.FUSE(
        HardwareFiles(arguments.state_file),
        str(arguments.mountpoint),
        foreground=True,
        allow_other=True,
        default_permissions=True,
        direct_io=True,
        attr_timeout=REMEMBERED_S,
        entry_timeout=REMEMBERED_S,
        negative_timeout=0,
        fsname="lab-hardware",
    )


if __name__ == "__main__":
    main()
