"""The directories that this command keeps on the controller."""

from __future__ import annotations

import os
from pathlib import Path


def state_dir() -> Path:
    """`$XDG_STATE_HOME/provision`, made with mode 0700."""
    return _private(_xdg("XDG_STATE_HOME", ".local/state") / "provision")


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/provision`: may be deleted at any time, costs only time."""
    return _private(_xdg("XDG_CACHE_HOME", ".cache") / "provision")


def _xdg(variable: str, fallback: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / fallback)


def _private(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
