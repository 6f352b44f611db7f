"""What a simulated kernel directory is made of: a directory is a dict, a file its text or its bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

Hardware: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Setting:
    """A file that can be written: its text now, and what a write does to the state (ValueError means EINVAL)."""

    text: str
    write: Callable[[Hardware, str], None]
    mode: int = 0o644


@dataclass(frozen=True)
class Registers:
    """A file of a device's registers: its bytes now, and what a write at an offset does to the state."""

    data: bytes
    write: Callable[[Hardware, int, bytes], None]


Node: TypeAlias = "Directory | Link | Setting | Registers | str | bytes"
Directory: TypeAlias = dict[str, Node]
