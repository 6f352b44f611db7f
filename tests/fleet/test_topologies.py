"""One engine over two hosts that vLLM itself joins, without Ray: what begins anew on one host begins anew on both."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import yaml
from rehearsal import TINY, Run, Site, wait_until

HOSTS = "serving: {children: {pair: {hosts: {node-1: , node-2: }}}}\n"
SERVING = (
    TINY
    + """\
vllm_executor: mp
vllm_args: {max-model-len: 512, max-num-seqs: 4, num-gpu-blocks-override: 64, enable-expert-parallel: true}
"""
)
SPLIT, COPIES = "vllm_tensor_parallel_size: 2\n", "vllm_tensor_parallel_size: 1\nvllm_data_parallel_size: 2\n"


class Pair:
    """The site, and what runs on its two hosts."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def sizes(self, text: str) -> None:
        self.site.variables("group_vars/serving.yml", SERVING + text)

    def healthy(self) -> bool:
        run = self.site.run("status", self.site.directory, "--json", code=None)
        return bool(run.out) and all(one["healthy"] for one in json.loads(run.out)["replicas"])

    def epochs(self) -> list[str]:
        return [self.site.sh(host, "cat /run/vllm/epoch", check=False).strip() for host in ("node-1", "node-2")]

    def began_anew(self, before: list[str]) -> bool:
        now = self.epochs()
        return now[0] != before[0] and now[0] == now[1] and self.healthy()


@pytest.fixture(scope="module")
def pair(make_site: Callable[[str], Site]) -> Pair:
    site = make_site("topologies")
    site.variables("hosts.yml", HOSTS)
    pair = Pair(site)
    pair.sizes(SPLIT)
    site.up()
    return pair


@pytest.fixture(scope="module")
def first(pair: Pair) -> Run:
    return pair.site.foretold()


def test_a_model_split_over_two_hosts_answers(pair: Pair, first: Run) -> None:
    assert pair.healthy()
    assert len(set(pair.epochs())) == 1
    assert pair.site.bootstrap().changes() == {}


def test_a_rank_that_dies_takes_the_engine_along_and_it_comes_back(pair: Pair, first: Run) -> None:
    before = pair.epochs()
    pair.site.sh("node-2", "systemctl kill --signal=KILL vllm.service")
    wait_until("both are part of a new start", lambda: pair.began_anew(before), 300)
    assert "node-2" in first.changes()
    assert pair.site.bootstrap().changes() == {}


def test_a_head_that_begins_anew_takes_the_other_host_along(pair: Pair, first: Run) -> None:
    before = pair.epochs()
    pair.site.sh("node-1", "systemctl restart vllm.service")
    wait_until("both are part of a new start", lambda: pair.began_anew(before), 300)


def test_a_host_that_loses_power_comes_back_into_the_engine(pair: Pair, first: Run) -> None:
    before = pair.epochs()
    pair.site.run("lab", "reboot", pair.site.directory, "node-2", "--hard")
    wait_until("both are part of a new start", lambda: pair.began_anew(before), 400)
    assert pair.site.bootstrap().changes() == {}


def test_copies_on_two_hosts_are_configured_and_find_each_other(pair: Pair, first: Run) -> None:
    """No more can be seen here: vLLM's CPU build lacks what copies of a model with experts exchange (all_gatherv)."""
    pair.sizes(COPIES + "vllm_start_timeout: 150\n")
    assert "is not ready after 150 s" in pair.site.bootstrap(code=1).text
    head, other = (yaml.safe_load(pair.site.sh(host, "cat /etc/provision/vllm.yaml")) for host in ("node-1", "node-2"))
    alike = {"data-parallel-size": 2, "data-parallel-size-local": 1, "data-parallel-rpc-port": 13345}
    assert alike.items() <= head.items()
    assert alike.items() <= other.items()
    assert (other["headless"], other["data-parallel-start-rank"]) == (True, 1)
    assert head["data-parallel-address"] == other["data-parallel-address"] == head["host"]
    assert "headless" not in head
    engines = "journalctl --boot --unit vllm.service | grep -c 'EngineCore_DP[01]'"
    assert [int(pair.site.sh(host, engines)) > 0 for host in ("node-1", "node-2")] == [True, True]
