"""Weights on simulated hosts, with the real client against the lab's hub: fetched once, killed, damaged, late, switched."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable

import pytest
from holders import UNIT, Holders
from rehearsal import Run, Site, wait_until

STAGES = "site,host,tools,transfer,weights"
HOSTS = (
    "serving:\n  children:\n    w_a: {hosts: {node-1: }}\n    w_b: {hosts: {node-2: }}\n    w_c: {hosts: {node-3: }}\n"
)
NODES = ("node-1", "node-2", "node-3")
REPO = "provision-lab/tiny-deepseek-v3"
BASE = f"/data/models/{REPO.replace('/', '--')}"
SUMS = f"cd {BASE}/current/ && find . -type f | sort | xargs sha256sum"


class Weights(Holders):
    """The site, and what its hosts hold."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, NODES, BASE)

    def bootstrap(self, *options: str, code: int = 0) -> Run:
        return self.site.bootstrap("--stage", STAGES, *options, code=code)

    def command(self, verb: str, *options: str, code: int | None = 0) -> Run:
        return self.site.run("weights", verb, self.site.directory, *options, code=code)

    def everywhere(self, script: str) -> dict[str, str]:
        return {host: self.site.sh(host, script) for host in NODES}

    def same(self) -> None:
        """All hold the same files, and the hub's."""
        sums = self.everywhere(SUMS)
        assert len(set(sums.values())) == 1, sums
        assert sums["node-1"].count("safetensors") >= 2

    def of(self, run: Run) -> dict[str, list[str]]:
        return {
            host: [sentence for sentence in own if sentence.startswith(("transfer: ", "weights: "))]
            for host, own in run.changes().items()
        }


@pytest.fixture(scope="module")
def weights(make_site: Callable[[str], Site]) -> Weights:
    site = make_site("weights")
    site.variables("hosts.yml", HOSTS)
    site.variables(
        "group_vars/serving.yml",
        f"hardware_profile: 8xh20-96\nweights_repo: {REPO}\nserving_env_build: cpu\nswap_path: /data/swapfile\nvllm_tensor_parallel_size: 1\n"
        "host_packages: [ca-certificates, python3-venv]\nweights_rate: 1\n",
    )
    site.up()
    return Weights(site)


@pytest.fixture(scope="module")
def first(weights: Weights) -> Run:
    predicted = weights.of(weights.bootstrap("--check", code=2))
    run = weights.bootstrap()
    assert predicted == weights.of(run)
    return run


def test_all_hold_the_same_and_the_uplink_was_used_once(weights: Weights, first: Run) -> None:
    weights.same()
    sources = {host: set(weights.state(host)["sources"]) for host in NODES}
    assert any("://" in source for source in sources["node-1"])
    for host in NODES[1:]:
        assert not any("://" in source for source in sources[host]), sources


def test_again_there_is_nothing_to_do(weights: Weights, first: Run) -> None:
    assert weights.bootstrap().changes() == {}


def test_the_port_is_open_to_the_chain_alone(weights: Weights, first: Run) -> None:
    listening = weights.site.sh("node-1", "ss -Hltn | awk '{print $4}'").split()
    assert [at for at in listening if at.endswith(":8082")]
    assert not [at for at in listening if at in ("0.0.0.0:8082", "*:8082", "0.0.0.0:80", "[::]:80")]
    assert "8082 drop" in weights.site.sh("node-1", "nft list table inet provision_weights")
    address = weights.site.sh("node-1", "hostname -I").split()[0]
    fetch = f"python3 -c 'import urllib.request as u; print(u.urlopen(\"http://{address}:8082/state.json\", timeout=5).status)'"
    assert weights.site.sh("node-2", fetch).strip() == "200"


def test_the_token_is_nowhere(weights: Weights, first: Run) -> None:
    assert weights.site.sh("node-1", "ls /etc/provision/secrets").split() == []


def test_killed_at_ten_random_moments(weights: Weights, first: Run) -> None:
    weights.forget()
    dice = random.Random(5)  # noqa: S311
    weights.site.bootstrap("--stage", "transfer", "--full")
    for _ in range(10):
        host = dice.choice(NODES)
        weights.site.sh(host, f"systemctl kill --signal=KILL {UNIT} || true")
        time.sleep(dice.uniform(0, 1.5))
    weights.bootstrap()
    weights.same()


@pytest.mark.parametrize(
    "damage",
    [
        "f=$(ls *.safetensors | head -n 1); printf x | dd of=$f bs=1 seek=9000 conv=notrunc status=none",
        "f=$(ls *.safetensors | head -n 1); truncate -s -1 $f",
        "set -- *.safetensors; mv $1 t; mv $2 $1; mv t $2; touch $1 $2",
    ],
    ids=["flipped", "truncated", "swapped"],
)
def test_damage_is_found_named_and_fetched_again_alone(weights: Weights, first: Run, damage: str) -> None:
    weights.site.sh("node-2", f"cd {BASE}/current/ && {damage}")
    predicted = weights.of(weights.bootstrap("--check", code=2))
    changed = weights.of(weights.bootstrap())
    assert predicted == changed
    assert list(changed) == ["node-2"]
    assert all("Fetched again model-0000" in sentence for sentence in changed["node-2"])
    weights.same()


def test_rot_that_no_time_tells_is_found_by_verify(weights: Weights, first: Run) -> None:
    flip = "f=$(ls *.safetensors | head -n 1); printf x | dd of=$f bs=1 seek=9000 conv=notrunc status=none; touch -d @946684800 $f"
    weights.site.sh("node-3", f"cd {BASE}/current/ && {flip}")
    assert weights.bootstrap().changes() == {}
    found = {one["name"]: one["wrong"] for one in json.loads(weights.command("verify", "--json", code=2).out)["hosts"]}
    assert [len(found[host]) for host in NODES] == [0, 0, 1]
    weights.bootstrap()
    assert weights.command("verify").out.count("all as they should be") == 3
    weights.same()
    weights.site.sh("node-2", f"cd {BASE}/current/ && {flip}")
    predicted = weights.of(weights.bootstrap("--check", "--full", code=2))
    assert list(predicted) == ["node-2"]
    assert weights.of(weights.bootstrap("--full")) == predicted
    weights.same()


def test_it_can_be_read_into_memory_before_vllm_starts(weights: Weights, first: Run) -> None:
    file = weights.site.directory / "group_vars/serving.yml"
    text = file.read_text()
    file.write_text(f"{text}weights_warm_up: true\n")
    warm = "provision-weights-warm.service"
    changed = weights.of(weights.bootstrap())
    assert [host for host in NODES if any(warm in sentence for sentence in changed[host])] == list(NODES)
    read = f"systemctl start {warm} && systemctl show -P ExecMainStatus -P Before {warm} && systemctl is-enabled {warm}"
    status, before, enabled = weights.site.sh("node-1", read).splitlines()
    assert (status, enabled) == ("0", "enabled")
    assert "vllm.service" in before.split()
    assert weights.bootstrap().changes() == {}
    file.write_text(text)
    assert set(weights.of(weights.bootstrap())) == set(NODES)
    assert "not-found" in weights.site.sh("node-1", f"systemctl show -P LoadState {warm}")


def test_a_host_that_joins_late_asks_the_hub_for_no_file(weights: Weights, first: Run) -> None:
    weights.forget("node-3")
    weights.bootstrap()
    assert not any("://" in source for source in weights.state("node-3")["sources"])
    weights.same()


def test_a_peer_that_dies_in_the_middle_harms_no_one(weights: Weights, first: Run) -> None:
    weights.forget()
    weights.site.bootstrap("--stage", "transfer", "--full")
    wait_until("node-3 has something", lambda: weights.state("node-3").get("bytes", 0) > 0, 60)
    weights.site.sh("node-2", f"systemctl kill --signal=KILL {UNIT} provision-weights-peers.service; "
                              f"systemctl stop {UNIT} provision-weights-peers.service")  # fmt: skip
    wait_until("node-3 is done", lambda: weights.state("node-3").get("done"), 120)
    weights.bootstrap("--full")
    weights.same()


def test_a_full_disk_is_told_and_nothing_is_lost(weights: Weights, first: Run) -> None:
    before = weights.everywhere(SUMS)
    weights.site.sh("node-1", f"rm -rf {BASE}/*; mount -t tmpfs -o size=2M tmpfs {BASE}")
    failed = weights.bootstrap(code=1)
    assert re.search(r"[GM]B free, and .* needs|is full", failed.text)
    weights.site.sh("node-1", f"systemctl stop {UNIT}; umount {BASE}")
    weights.bootstrap()
    assert weights.everywhere(SUMS) == before


def test_switch_and_back_while_a_reader_has_files_open(weights: Weights, first: Run) -> None:
    """The lab's hub has the tiny model at every commit of a name that it does not know."""
    site, file = weights.site, weights.site.directory / "group_vars/serving.yml"
    text = file.read_text()
    base = "/data/models/else--where"
    commits = ["a" * 40, "b" * 40, "c" * 40]
    for commit in commits[:2]:
        file.write_text(
            f"{text}weights_repo: else/where\nweights_revision: {commit}\n".replace(f"weights_repo: {REPO}\n", "")
        )
        weights.bootstrap()
    site.sh(
        "node-1",
        f"exec 3<$(ls {base}/current/*.safetensors | head -n 1); (sleep 600 <&3 >/dev/null 2>&1 & echo $! > /run/reader)",
    )
    assert "not whole" in weights.command("switch", "--to", commits[2], code=1).text
    weights.command("switch", "--to", "previous")
    assert {out.strip() for out in weights.everywhere(f"readlink {base}/current").values()} == {commits[0]}
    weights.command("switch")
    assert {out.strip() for out in weights.everywhere(f"readlink {base}/current").values()} == {commits[1]}
    file.write_text(
        f"{text}weights_repo: else/where\nweights_revision: {commits[2]}\n".replace(f"weights_repo: {REPO}\n", "")
    )
    weights.bootstrap()
    shown = json.loads(weights.command("gc", "--json", code=2).out)["hosts"]
    assert [list(one["commits"]) for one in shown] == [[commits[0]]] * 3
    weights.command("gc", "--yes")
    assert weights.command("gc").out.startswith("Nothing to remove")
    site.sh(
        "node-1",
        f"cmp /proc/$(cat /run/reader)/fd/0 $(ls {base}/{commits[1]}/*.safetensors | head -n 1); kill $(cat /run/reader)",
    )
    file.write_text(text)
