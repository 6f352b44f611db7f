"""Real cards as tests/cards/look.py recorded them: each answer of nvidia-smi, and what the kernel shows beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


class Real:
    """One recorded machine, to be put in the place of this one."""

    def __init__(self, name: str) -> None:
        told = json.loads((Path(__file__).parent / f"recorded/{name}.json").read_text(encoding="utf-8"))
        self.name, self.files, self.probe = name, told["files"], told["probe"]
        self.queries: list[dict[str, Any]] = told["queries"]

    def run(self, argv: Sequence[str], **_: object) -> SimpleNamespace:
        """What nvidia-smi answered to this; other programs are not there."""
        if argv[0] != "nvidia-smi":
            return SimpleNamespace(rc=127, out="", err=f"{argv[0]} is not installed")
        if argv[1].startswith("--query-gpu="):
            fields = argv[1].partition("=")[2].split(",")
            lines = (", ".join(row[field] for field in fields) for row in self.cards())
            return SimpleNamespace(rc=0, out="".join(f"{line}\n" for line in lines), err="")
        (asked,) = (each for each in self.queries if each["argv"] == list(argv[1:]))
        return SimpleNamespace(rc=asked["rc"], out=asked["out"], err=asked["err"])

    def cards(self) -> list[dict[str, str]]:
        """Every field that a recorded question asked for, of each card: modules may ask for others of them together."""
        found: list[dict[str, str]] = [{} for _ in self.probe["gpus"]]
        for asked in self.queries:
            what, _, fields = asked["argv"][0].partition("=")
            if what == "--query-gpu":
                for card, line in zip(found, asked["out"].splitlines(), strict=True):
                    card.update(zip(fields.split(","), line.split(", "), strict=True))
        return found

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def lay_out(self, root: Path) -> Path:
        """Its /sys, below a directory."""
        for path, text in sorted(self.files.items(), key=lambda item: not item[1].startswith("-> ")):
            place = root / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            if text.startswith("-> "):
                (place.parent / text[3:]).mkdir(parents=True)
                place.symlink_to(text[3:])
            elif text:
                place.write_text(text, encoding="utf-8")
        return root / "sys"


@pytest.fixture(params=["h200x2", "h100x1"])
def real(request: pytest.FixtureRequest) -> Real:
    return Real(request.param)
