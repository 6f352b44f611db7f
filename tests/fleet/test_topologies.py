"""The shapes of a replica: one engine over two hosts without Ray, which begins anew on both or neither; by Ray; one host; copies."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable

import pytest
import yaml
from clients import Clients
from rehearsal import TINY, Run, Site, wait_until

TOGETHER = "serving: {children: {pair: {hosts: {node-1: , node-2: }}}}\n"
APART = "serving: {children: {wide: {hosts: {node-1: }}, narrow: {hosts: {node-2: }}}}\n"
SPLIT = "vllm_executor: mp\nvllm_tensor_parallel_size: 2\n"
EIGHT = "ray_num_gpus: 8\nvllm_tensor_parallel_size: 8\n"
STAGES = EIGHT + "vllm_executor: ray\nvllm_pipeline_parallel_size: 2\n"
COPIES = "vllm_executor: mp\nvllm_tensor_parallel_size: 1\nvllm_data_parallel_size: 2\n"
ARGS = "vllm_args: {{max-model-len: 512, max-num-seqs: 4, num-gpu-blocks-override: 64, {}}}\n"
EXPERTS = ARGS.format("enable-expert-parallel: true")
# The tiny model with other sizes, for which there are no weights: a head and an expert for each of eight ranks; no experts.
WIDE = ARGS.format(
    "enable-expert-parallel: true, load-format: dummy, hf-overrides: {num_attention_heads: 8, num_key_value_heads: 8}"
)
DENSE = ARGS.format("load-format: dummy, hf-overrides: {n_routed_experts: 0, first_k_dense_replace: 2}")
TOKENS = r'^vllm:generation_tokens_total\{engine="(\d)".*\} (\S+)$'


class Pair:
    """The site, and what runs on its two hosts."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def sizes(self, text: str) -> None:
        self.site.variables("group_vars/serving.yml", TINY + text)

    def healthy(self) -> bool:
        run = self.site.run("status", self.site.directory, "--json", code=None)
        return bool(run.out) and all(one["healthy"] for one in json.loads(run.out)["replicas"])

    def epochs(self) -> list[str]:
        return [self.site.sh(host, "cat /run/vllm/epoch", check=False).strip() for host in ("node-1", "node-2")]

    def url(self) -> str:
        return str(json.loads(self.site.run("status", self.site.directory, "--json").out)["replicas"][0]["url"])

    def began_anew(self, before: list[str]) -> bool:
        now = self.epochs()
        return now[0] != before[0] and now[0] == now[1] and self.healthy()


def tokens(url: str) -> dict[str, float]:
    """How many tokens each copy has generated, as the metrics of their one API say."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/metrics", timeout=60) as told:
        return {copy: float(count) for copy, count in re.findall(TOKENS, told.read().decode(), re.MULTILINE)}


@pytest.fixture(scope="module")
def pair(make_site: Callable[[str], Site]) -> Pair:
    site = make_site("topologies")
    site.variables("hosts.yml", TOGETHER)
    pair = Pair(site)
    pair.sizes(SPLIT + EXPERTS)
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


def test_one_copy_takes_all_gpus_of_two_hosts_by_ray(pair: Pair, first: Run) -> None:
    """Tensor parallel 8, pipeline parallel 2: the shape of a model that one host cannot hold."""
    pair.sizes(STAGES + WIDE)
    pair.site.bootstrap()
    assert pair.healthy()
    ranks = "ps -eo args | grep -c '^ray::RayWorker'"
    assert [int(pair.site.sh(host, ranks)) for host in ("node-1", "node-2")] == [8, 8]
    assert pair.site.bootstrap().changes() == {}


def test_hosts_that_served_together_serve_apart(pair: Pair, first: Run) -> None:
    """Tensor parallel 8 on one of them, a single GPU on the other."""
    pair.site.variables("hosts.yml", APART)
    pair.site.variables("group_vars/wide.yml", EIGHT + WIDE)
    pair.site.variables("group_vars/narrow.yml", "vllm_tensor_parallel_size: 1\n" + ARGS.format("enforce-eager: true"))
    pair.sizes("")
    pair.site.bootstrap()
    assert pair.healthy()
    ranks = "ps -eo args | grep -c '^VLLM::Worker'"
    assert [int(pair.site.sh(host, ranks, check=False)) for host in ("node-1", "node-2")] == [8, 0]
    assert pair.site.bootstrap().changes() == {}


def test_copies_on_two_hosts_answer_behind_one_api_and_begin_anew_together(pair: Pair, first: Run) -> None:
    pair.site.variables("hosts.yml", TOGETHER)
    pair.sizes(COPIES + DENSE)
    pair.site.bootstrap()
    assert pair.site.bootstrap().changes() == {}
    before, url = pair.epochs(), pair.url()
    idle = tokens(url)
    assert set(idle) == {"0", "1"}
    with Clients(url, "tiny", 4) as clients:
        wait_until("both copies generate", lambda: all(count > idle[copy] for copy, count in tokens(url).items()))
    assert not clients.failed()
    pair.site.sh("node-2", "systemctl kill --signal=KILL vllm.service")
    wait_until("both are part of a new start", lambda: pair.began_anew(before), 300)
    assert pair.site.bootstrap().changes() == {}


def test_copies_of_a_model_with_experts_are_configured_and_find_each_other(pair: Pair, first: Run) -> None:
    """No more can be seen here: vLLM's CPU build lacks what copies of a model with experts exchange (all_gatherv)."""
    pair.sizes(COPIES + EXPERTS + "vllm_start_timeout: 150\n")
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
