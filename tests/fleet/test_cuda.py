"""The CUDA toolkit and NCCL: off by default, exact and held when asked for, repaired when touched, let go again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rehearsal import Run, Site

import provision.stack

HOSTS = ("node-1", "node-2")
STAGES = "host,driver,cuda"
SCHEMA = json.loads((Path(provision.stack.__file__).parent / "stack.schema.json").read_text(encoding="utf-8"))
ASKED = "cuda_toolkit: true\ncuda_nccl: true\n"
INSTALLED = [
    "Wrote /etc/apt/preferences.d/provision-cuda-toolkit.",
    "Wrote /etc/apt/preferences.d/provision-nccl.",
    "Installed cuda-toolkit-13-0, libnccl-dev, libnccl2.",
    "Held the packages of cuda-toolkit against upgrades.",
    "Held the packages of nccl against upgrades.",
]
CHANGED_BY_HAND = {
    "a hold": ("node-1", "apt-mark unhold libnccl2", ["Held the packages of nccl against upgrades."]),
    "a component's hold": (
        "node-2",
        "apt-mark unhold libcublas-13-0",
        ["Held the packages of cuda-toolkit against upgrades."],
    ),
    "a package": (
        "node-1",
        "dpkg --remove libnccl-dev",
        ["Installed libnccl-dev.", "Held the packages of nccl against upgrades."],
    ),
    "a component": (
        "node-1",
        "dpkg --remove --force-depends cuda-nvcc-13-0",
        ["Installed cuda-nvcc-13-0.", "Held the packages of cuda-toolkit against upgrades."],
    ),
    "a version": (
        "node-2",
        "apt-get install -qq -y --allow-downgrades --allow-change-held-packages cuda-toolkit-13-0=13.0.2-1",
        ["Changed cuda-toolkit-13-0 to 13.0.3-1.", "Held the packages of cuda-toolkit against upgrades."],
    ),
    "a pin": (
        "node-1",
        "sed -i s/1001/100/ /etc/apt/preferences.d/provision-nccl",
        ["Rewrote /etc/apt/preferences.d/provision-nccl."],
    ),
}


def converge(site: Site, *options: str, code: int = 0) -> Run:
    return site.bootstrap("--stage", STAGES, *options, code=code)


def versions(site: Site, host: str) -> dict[str, str]:
    """Version and selection ("hold") of what is installed of CUDA and NCCL."""
    form = "--showformat='${Package} ${Version} ${db:Status-Want}\\n'"
    shown = site.sh(host, f"dpkg-query --show {form} | grep -E '^(cuda-|libcublas|libnccl)' || true")
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in shown.splitlines()}


def stack(site: Site, code: int) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(site.run("stack", site.directory, "--hosts", "--json", code=code).out)
    jsonschema.validate(document, SCHEMA)
    return document


@pytest.fixture(scope="module")
def site(make_site: Callable[[str], Site]) -> Site:
    """Two hosts with a driver, and no CUDA: nothing of it is needed to serve."""
    site = make_site("cuda")
    site.up()
    converge(site)
    for host in HOSTS:
        assert versions(site, host) == {}
    return site


@pytest.fixture(scope="module")
def asked(site: Site) -> Run:
    """The run after the inventory asked for it; a check said before what it would do."""
    site.variables("host_vars/node-1.yml", ASKED)
    site.variables("host_vars/node-2.yml", ASKED)
    foretold = converge(site, "--check", code=2)
    done = converge(site)
    assert foretold.changes() == done.changes()
    return done


def test_it_is_installed_exactly_pinned_and_held(site: Site, asked: Run) -> None:
    for host in HOSTS:
        assert asked.changes()[host] == [f"cuda: {sentence}" for sentence in INSTALLED]
        there = versions(site, host)
        assert there["cuda-toolkit-13-0"] == "13.0.3-1 hold"
        assert there["libnccl2"] == there["libnccl-dev"] == "2.28.9-1+cuda13.0 hold"  # not the newest in the repository
        assert {want.split()[1] for want in there.values()} == {"hold"}  # the components, too
        # What apt would do to them, asked for everything: nothing.
        assert "libnccl" not in site.sh(host, "apt-get --simulate dist-upgrade")
    assert converge(site).changes() == {}


@pytest.mark.parametrize("what", CHANGED_BY_HAND)
def test_what_was_changed_by_hand_is_named_and_repaired_alone(site: Site, asked: Run, what: str) -> None:
    host, script, sentences = CHANGED_BY_HAND[what]
    before = {name: versions(site, name) for name in HOSTS}
    site.sh(host, script)
    drift = json.loads(site.run("drift", site.directory, "--json", code=2).out)
    named = {
        seen["name"]: [finding["action"] for finding in stage["findings"]]
        for seen in drift["hosts"]
        for stage in seen["stages"]
        if stage["findings"]
    }
    assert named == {host: sentences}
    assert converge(site).changes() == {host: [f"cuda: {sentence}" for sentence in sentences]}
    assert {name: versions(site, name) for name in HOSTS} == before


def test_the_stack_is_compared_with_the_hosts(site: Site, asked: Run) -> None:
    document = stack(site, code=2)  # nothing that serves is installed here
    for host in document["hosts"]:
        assert (host["has"]["driver"], host["has"]["fabric manager"]) == ("580.126.20", "580.126.20")
        assert host["has"]["CUDA toolkit"] == "13.0.3"
        assert {each["part"] for each in host["differs"]} == {"vLLM", "Ray", "PyTorch", "uv", "huggingface_hub"}
    assert document["skew"] == []
    site.sh(
        "node-2",
        "apt-get install -qq -y --allow-change-held-packages libnccl2=2.29.7-1+cuda13.2 libnccl-dev=2.29.7-1+cuda13.2",
    )
    (skew,) = stack(site, code=1)["skew"]
    assert (skew["part"], skew["versions"]["node-2"]) == ("NCCL (system)", "2.29.7-1+cuda13.2")
    converge(site)
    assert stack(site, code=2)["skew"] == []


def test_it_is_so_after_a_reboot(site: Site, asked: Run) -> None:
    before = versions(site, "node-1")
    site.run("lab", "reboot", site.directory, "node-1")
    assert versions(site, "node-1") == before
    assert converge(site).changes() == {}


def test_another_version_in_the_lock_file_is_installed_up_and_down(site: Site, asked: Run) -> None:
    lock = site.directory / "stack.lock.yml"
    text = lock.read_text(encoding="utf-8")
    for version in ("2.27.7-1+cuda13.0", "2.28.9-1+cuda13.0"):
        lock.write_text(text.replace("2.28.9-1+cuda13.0", version), encoding="utf-8")
        converge(site)
        assert versions(site, "node-1")["libnccl2"] == f"{version} hold"
    assert converge(site).changes() == {}


def test_what_is_not_asked_for_any_more_is_let_go(site: Site, asked: Run) -> None:
    site.variables("host_vars/node-1.yml", "cuda_nccl: true\n")
    assert converge(site).changes() == {
        "node-1": [
            "cuda: Released the packages of cuda-toolkit for upgrades.",
            "cuda: Removed /etc/apt/preferences.d/provision-cuda-toolkit.",
        ]
    }
    there = versions(site, "node-1")
    assert (there["cuda-toolkit-13-0"], there["libnccl2"]) == ("13.0.3-1 install", "2.28.9-1+cuda13.0 hold")
    assert converge(site).changes() == {}
