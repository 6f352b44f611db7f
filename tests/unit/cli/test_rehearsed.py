"""After a rehearsal no hint may name a command that would touch the real hosts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from provision.cli.summary import _lab


@pytest.mark.parametrize(("says", "rehearsed"), [("lab: true", False), ("local_site: x", True)])
def test_a_real_inventory_on_simulated_hosts_is_a_rehearsal(tmp_path: Path, says: str, rehearsed: bool) -> None:
    (tmp_path / "hosts.yml").write_text("serving: {children: {a: {hosts: {gpu-01: }}}}\n", encoding="utf-8")
    (tmp_path / "group_vars").mkdir()
    (tmp_path / "group_vars/all.yml").write_text(f"{says}\n", encoding="utf-8")
    # The overlay of a fleet says `lab: true` of every host, so Fleet.lab cannot tell.
    option = " --lab" if rehearsed else ""
    assert _lab(SimpleNamespace(path=tmp_path, sources=(tmp_path, tmp_path), lab=True)) == option
    assert _lab(SimpleNamespace(path=tmp_path, sources=(tmp_path,), lab=True)) == ""
