"""The program that fetches weights: along a chain of hosts, killed, lied to and refused, over real connections."""

from __future__ import annotations

import random
import time

import pytest

SHARD = "model-00002-of-00004.safetensors"


def test_one_host_alone(chain):
    one = chain(1)
    one.start()
    one.finish()
    state = one[0].state()
    assert (state["done"], state["failed"], state["bytes"]) == (True, "", one.sizes())


def test_where_all_is_in_place_nothing_is_left_beside_it(chain):
    one = chain(1)
    one.start()
    one.finish()
    node = one[0]
    place = node.base / node.spec["commit"]
    node.partial.rename(place)  # as the module does, with the list beside it
    (place / ".manifest.json").rename(f"{place}.json")
    assert node.start().end() == 0
    assert (node.state()["done"], node.state()["bytes"]) == (True, one.sizes())
    assert not node.partial.exists()


def test_the_uplink_is_used_once(chain, bad_hub):
    hosts = chain(4)
    bad_hub.rate = 2e6
    for node in hosts.nodes:  # one that starts before its neighbour does would rightly read from a farther one first
        node.start()
        hosts.wait_for(lambda node=node: node.state().get("bytes"))
    hosts.finish()
    assert bad_hub.total == hosts.sizes()
    for number in (1, 2, 3):
        assert list(hosts[number].state()["sources"]) == [hosts[number - 1].address]


def test_killed_at_ten_random_moments(chain, bad_hub):
    hosts, dice = chain(3), random.Random(7)  # noqa: S311
    bad_hub.rate = 1.5e6
    hosts.start()
    for _ in range(10):
        time.sleep(dice.uniform(0.05, 0.6))
        node = dice.choice(hosts.nodes)
        if node.fetcher.poll() is None:
            node.kill()
            node.start()
    hosts.finish()
    # What was on its way when the user of the uplink was killed comes again: buffers, not files.
    assert bad_hub.total < hosts.sizes() * 1.5


def test_the_first_host_dies_and_the_next_takes_over(chain, bad_hub):
    hosts = chain(3)
    bad_hub.rate = 1.5e6
    hosts.start()
    hosts.wait_for(lambda: hosts[2].state().get("bytes", 0) > 1e6)
    hosts[0].kill(nginx=True)
    hosts.finish(nodes=hosts.nodes[1:])
    assert bad_hub.total < hosts.sizes() * 1.5
    assert bad_hub.url in hosts[1].state()["sources"]
    assert bad_hub.url not in hosts[2].state()["sources"]


def test_a_dead_host_in_the_middle_is_passed_over_and_comes_back(chain, bad_hub):
    hosts = chain(3)
    bad_hub.rate = 1.5e6
    hosts.start()
    hosts.wait_for(lambda: hosts[2].state().get("bytes", 0) > 1e6)
    hosts[1].kill(nginx=True)
    hosts.wait_for(lambda: hosts[0].address in hosts[2].state().get("sources", {}))
    hosts[1].serve()
    hosts[1].start()
    hosts.finish()
    assert bad_hub.total == hosts.sizes()


def test_late_join_asks_the_source_for_nothing(chain, bad_hub):
    hosts = chain(3)
    for node in hosts.nodes[:2]:
        node.start()
    hosts.finish(nodes=hosts.nodes[:2])
    sent = bad_hub.total
    hosts[2].start()
    hosts.finish()
    assert bad_hub.total == sent
    assert list(hosts[2].state()["sources"]) == [hosts[1].address]


def test_the_first_host_comes_late_and_takes_from_those_behind_it(chain, bad_hub):
    hosts = chain(3)
    for node in hosts.nodes[1:]:
        node.start()
    hosts.finish(nodes=hosts.nodes[1:])
    hosts[0].start()
    hosts.finish()
    assert bad_hub.total == hosts.sizes()


def test_one_flipped_byte_on_the_way_is_found_and_only_that_file_comes_again(chain, bad_hub):
    hosts = chain(3)
    bad_hub.flip, bad_hub.flips = {SHARD: 600_000}, 1
    hosts.start()
    hosts.finish()
    extra = bad_hub.total - hosts.sizes()
    assert extra == (hosts.model / SHARD).stat().st_size
    assert any(SHARD in line and bad_hub.url in line for line in hosts[0].state()["complaints"])


def test_a_source_that_always_lies_is_named(chain, bad_hub):
    hosts = chain(2)
    bad_hub.flip, bad_hub.flips = {SHARD: 600_000}, 1 << 30
    hosts.start()
    assert hosts[0].end() != 0
    assert f"{bad_hub.url} sent {SHARD} twice with another content" in hosts[0].state()["failed"]
    assert hosts[1].end() != 0
    assert not (hosts[1].partial / SHARD).exists()


def test_a_neighbour_whose_verified_copy_went_bad_is_named_and_passed_over(chain, bad_hub):
    hosts = chain(3)
    for node in hosts.nodes[:2]:
        node.start()
    hosts.finish(nodes=hosts.nodes[:2])
    bad = hosts[1].partial / SHARD
    data = bytearray(bad.read_bytes())
    data[5000] ^= 1
    bad.write_bytes(data)
    hosts[2].start()
    hosts.finish(nodes=[hosts[2]])
    assert any(SHARD in line and hosts[1].address in line for line in hosts[2].state()["complaints"])
    assert hosts[2].state()["sources"][hosts[0].address] >= len(data)


@pytest.mark.parametrize("how", ["truncated", "swapped", "flipped"])
def test_what_lies_there_and_is_not_right_is_fetched_again_alone(chain, bad_hub, how):
    one = chain(1)
    one.start()
    one.finish()
    first, second = (one[0].partial / f"model-0000{number}-of-00004.safetensors" for number in (1, 2))
    if how == "truncated":
        second.write_bytes(second.read_bytes()[:-1])
    elif how == "flipped":
        second.write_bytes(b"x" + second.read_bytes()[1:])
    else:
        one_, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(other)
        second.write_bytes(one_)
    sent = bad_hub.total
    one.start()
    one.finish()
    assert bad_hub.total - sent == second.stat().st_size * (2 if how == "swapped" else 1)


def test_a_hub_that_throttles_is_waited_for_with_its_reason(chain, bad_hub):
    hosts = chain(2)
    bad_hub.rate = 1.5e6
    hosts.start()
    hosts.wait_for(lambda: hosts[1].state().get("bytes", 0) > 5e5)
    bad_hub.answer = (429, {"Retry-After": "2"})
    hosts.wait_for(lambda: "throttles (429)" in hosts[0].state().get("reason", ""))
    bad_hub.answer = None
    hosts.finish()
    assert bad_hub.total == hosts.sizes()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((401, {}), "weights_token"),
        ((403, {"X-Error-Code": "GatedRepo"}), "weights_token"),
        ((404, {"X-Error-Code": "RevisionNotFound"}), "weights_revision"),
        ((404, {"X-Error-Code": "RepoNotFound"}), "weights_repo"),
    ],
)
def test_a_refusal_says_what_to_do(chain, bad_hub, answer, expected):
    hosts = chain(2)
    bad_hub.answer = answer
    hosts.start()
    for node in hosts.nodes:
        assert node.end() == 3, node.log()
        assert expected in node.state()["failed"]


def test_a_host_with_a_bad_token_takes_from_one_with_a_good_one(chain, bad_hub):
    hosts = chain(2)
    hosts[0].spec["source"] = {"kind": "huggingface", "endpoint": bad_hub.url + "/elsewhere"}
    hosts.start()
    hosts.finish()
    assert bad_hub.total == hosts.sizes()


def test_a_host_without_an_uplink_needs_only_its_neighbours(chain, bad_hub):
    hosts = chain(2)
    hosts[1].spec["uplink"] = False
    hosts.start()
    hosts.finish()
    assert "The list of files is that of" in hosts[1].log()


def test_a_lost_uplink_is_waited_out(chain, bad_hub):
    hosts = chain(2)
    bad_hub.rate = 1.5e6
    hosts.start()
    hosts.wait_for(lambda: hosts[1].state().get("bytes", 0) > 1e6)
    bad_hub.down = True
    hosts.wait_for(lambda: "does not answer" in hosts[0].state().get("reason", ""))
    bad_hub.down = False
    hosts.finish()
    assert bad_hub.total < hosts.sizes() * 1.3


def test_an_uplink_that_stays_away_ends_with_what_is_here_kept(chain, bad_hub):
    one = chain(1, patience=3)
    bad_hub.rate = 1.5e6
    one.start()
    one.wait_for(lambda: one[0].state().get("bytes", 0) > 1e6)
    bad_hub.down = True
    assert one[0].end() == 3
    assert "Not a byte of test/model has come for" in one[0].state()["failed"]
    assert one[0].state()["bytes"] > 1e6


def test_too_small_a_disk_is_told_before_anything_is_fetched(chain, bad_hub):
    one = chain(1, margin=1 << 60)
    one.start()
    assert one[0].end() == 3
    assert "GB more there" in one[0].state()["failed"]
    assert bad_hub.total == 0


def test_a_rate_limit_holds(chain, bad_hub):
    one = chain(1, rate=2_000_000)
    begin = time.monotonic()
    one.start()
    one.finish()
    assert time.monotonic() - begin > one.sizes() / 2e6 * 0.9


def test_a_host_that_serves_is_slowed(chain, bad_hub):
    one = chain(1, serving_rate=2_000_000)
    (one[0].work / "serving").touch()
    begin = time.monotonic()
    one.start()
    one.finish()
    assert time.monotonic() - begin > one.sizes() / 2e6 * 0.9
