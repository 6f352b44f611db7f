"""The fleet tests use the built wheel, installed outside the checkout: nothing in it may need the tree it came from."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rehearsal import Prediction, Run, Site
from snapshot import difference, snapshot

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `provision` of a wheel that was built from the checkout and installed in an environment of its own."""
    work = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", work, CHECKOUT], check=True, capture_output=True
    )
    (wheel,) = work.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", work / "venv"], check=True)
    subprocess.run([work / "venv/bin/pip", "install", "-qq", f"{wheel}[lab]"], check=True)
    return work / "venv/bin/provision"


@pytest.fixture(scope="session")
def make_site(command: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Site]]:
    """Make sites with inventories copied from the example; every fleet is taken down at the end."""
    sites: list[Site] = []

    def make(name: str) -> Site:
        work = tmp_path_factory.mktemp(name)
        site = Site(command, work / "inventory", work / "state")
        site.run("init", site.directory, "--from", "lab")
        sites.append(site)
        return site

    yield make
    for site in sites:
        site.down()


@pytest.fixture(scope="session")
def bare(make_site: Callable[[str], Site]) -> Site:
    """Two bare hosts of the example inventory, up and untouched."""
    site = make_site("lab")
    site.up()
    return site


@pytest.fixture(scope="session")
def predicted(bare: Site) -> Prediction:
    """A check of two bare hosts."""
    before = {host: snapshot(bare, host) for host in ("node-1", "node-2")}
    run = bare.bootstrap("--check", "--diff", code=2)
    return Prediction(run, {host: difference(state, snapshot(bare, host)) for host, state in before.items()})


@pytest.fixture(scope="session")
def first(bare: Site, predicted: Prediction) -> Run:
    """The first bootstrap of the two bare hosts."""
    return bare.bootstrap()


@pytest.fixture
def served(bare: Site, first: Run) -> Site:
    """The two hosts, serving."""
    return bare


@pytest.fixture(scope="session")
def spare(make_site: Callable[[str], Site]) -> Site:
    """Two more bare hosts, to be hurt."""
    site = make_site("spare")
    site.up()
    return site
