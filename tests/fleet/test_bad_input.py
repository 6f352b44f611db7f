"""Bad input: one clear error per host, the other hosts' results, the right exit code, and hosts as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from rehearsal import Run, Site
from snapshot import difference, snapshot

BAD, GOOD = "node-2", "node-1"


@contextmanager
def changed(site: Site, do: str, undo: str) -> Iterator[None]:
    """A change made on the bad host by hand, undone afterwards from outside: logging in may be what it broke."""
    site.inside(BAD, do)
    try:
        yield
    finally:
        site.inside(BAD, undo)


def bootstrap(site: Site, code: int) -> Run:
    """The first stages that change a host, told to a person."""
    return site.run("bootstrap", site.directory, "--stage", "preflight,site", code=code)


BY_HAND: dict[str, tuple[str, str, list[str]]] = {
    "changed host key": (
        "mkdir /root/keys && mv /etc/ssh/ssh_host_ed25519_key* /root/keys/ "
        "&& ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key && systemctl restart ssh",
        "mv /root/keys/* /etc/ssh/ && rmdir /root/keys && systemctl restart ssh",
        ["host key", "ssh-keygen -f", "-R"],
    ),
    "wrong SSH key": (
        "mv ~ops/.ssh/authorized_keys ~ops/.ssh/away",
        "mv ~ops/.ssh/away ~ops/.ssh/authorized_keys",
        ["ops", "key"],
    ),
    "no sudo": (
        "mkdir /root/sudoers && mv /etc/sudoers.d/* /root/sudoers/",
        "mv /root/sudoers/* /etc/sudoers.d/ && rmdir /root/sudoers",
        ["sudo"],
    ),
    "unsupported OS": (
        "cp -L /etc/os-release /root/release && sed -i 's/12/11/; s/bookworm/bullseye/' /usr/lib/os-release",
        "cp /root/release /usr/lib/os-release && rm /root/release",
        ["Debian GNU/Linux 11", "Debian 12"],
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_a_host_that_is_not_as_needed(spare: Site, case: str) -> None:
    do, undo, words = BY_HAND[case]
    with changed(spare, do, undo):
        before = snapshot(spare, BAD, inside=True)
        run = bootstrap(spare, code=1)
        assert difference(before, snapshot(spare, BAD, inside=True)) == {}
    for word in (BAD, *words):
        assert word in run.text, str(run)
    assert "1 ok" in run.text or "1 changed" in run.text, str(run)  # the other host went on


FAULTS = {
    "sshd-gone": (3, ["refuses connections"]),
    "disk-full": (1, ["GiB are free at /opt"]),
    "link-down": (3, ["unreachable"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_host_with_a_fault(spare: Site, fault: str) -> None:
    code, words = FAULTS[fault]
    spare.break_(BAD, fault)
    try:
        before = snapshot(spare, BAD, inside=True)
        run = bootstrap(spare, code=code)
        assert difference(before, snapshot(spare, BAD, inside=True)) == {}
    finally:
        spare.mend(BAD, fault)
    for word in (BAD, *words):
        assert word in run.text, str(run)


def test_fewer_gpus_than_declared(spare: Site) -> None:
    serving = (spare.directory / "group_vars/serving.yml").read_text(encoding="utf-8")
    before = snapshot(spare, BAD)
    spare.variables("group_vars/serving.yml", serving.replace("8xh20-96", "4xa100-80"))
    try:
        run = bootstrap(spare, code=1)
    finally:
        spare.variables("group_vars/serving.yml", serving)
    for word in (GOOD, BAD, "8", "4", "GPU"):
        assert word in run.text, str(run)
    assert difference(before, snapshot(spare, BAD)) == {}


def edited(file: str, old: str, new: str) -> Callable[[Site], None]:
    def edit(site: Site) -> None:
        text = (site.directory / file).read_text(encoding="utf-8")
        assert old in text
        site.variables(file, text.replace(old, new))

    return edit


SERVING = "group_vars/serving.yml"
INPUTS: dict[str, tuple[Callable[[Site], None], list[str]]] = {
    "malformed": (edited("hosts.yml", "children:", "children: ["), ["hosts.yml:"]),
    "unknown variable": (
        edited(SERVING, "vllm_tensor_parallel_size", "vllm_tensor_paralel_size"),
        [f"{SERVING}:", "vllm_tensor_paralel_size", "vllm_tensor_parallel_size", "provision vars vllm"],
    ),
    "wrong type": (
        edited(SERVING, "vllm_tensor_parallel_size: 2", "vllm_tensor_parallel_size: two"),
        [f"{SERVING}:", "two"],
    ),
    "parallel sizes": (
        edited(SERVING, "vllm_tensor_parallel_size: 2", "vllm_tensor_parallel_size: 3"),
        [f"{SERVING}:", "3", "2"],
    ),
    "unknown profile": (edited(SERVING, "8xh20-96", "8xh20-95"), [f"{SERVING}:", "8xh20-96"]),
    "unknown flag": (edited(SERVING, "max-num-seqs", "max-num-seq"), [f"{SERVING}:", "max-num-seqs"]),
    "a version that is none": (edited("stack.lock.yml", "580.126.20", "latest"), ["stack.lock.yml:", "latest"]),
}


@pytest.mark.parametrize("case", INPUTS)
def test_an_inventory_that_is_wrong(make_site: Callable[..., Site], case: str) -> None:
    edit, words = INPUTS[case]
    site = make_site("wrong")
    edit(site)
    run = site.run("bootstrap", site.directory, code=65)
    for word in words:
        assert word in run.text, str(run)


def test_no_inventory(spare: Site) -> None:
    assert "no-such" in spare.run("bootstrap", spare.directory / "no-such", code=65).text


def test_no_such_host_or_stage(spare: Site) -> None:
    assert "node-1" in spare.run("bootstrap", spare.directory, "--limit", "node-11", code=64).text
    assert "driver" in spare.run("bootstrap", spare.directory, "--stage", "drivers", code=64).text
