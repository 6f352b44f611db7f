"""Who hands weights on to whom."""

from __future__ import annotations

from pathlib import Path

from provision.inventory import Host
from provision.inventory.model import Fleet, Replica
from provision.stack import load_stack
from provision.weights.ask import commit_of
from provision.weights.chain import chains


def host(name, address, **variables):
    return Host(name, address, None, None, None, (), variables, ("serving", "r"))


def fleet(*hosts):
    stack = load_stack(Path("inventory/2x8xh800"))
    return Fleet(Path("x"), (), {each.name: each for each in hosts}, {}, (Replica("r", tuple(hosts)),), stack, False)


def test_hosts_of_one_model_in_the_order_of_the_inventory():
    model = {"weights_repo": "a/b"}
    found = fleet(
        host("one", "10.0.0.9", **model),
        host("two", "10.0.0.2", **model, weights_address="10.9.0.2", ray_address="10.8.0.2"),
        host("three", "10.0.0.3", **model, ray_address="10.8.0.3"),
        host("other", "10.0.0.4", weights_repo="c/d"),
        host("alone", "10.0.0.5", **model, weights_fan_out=False),
        host("named", "gpu-17.example", **model),
        host("none", "10.0.0.6"),
    )
    assert chains(found) == {"a/b": ["10.0.0.9", "10.9.0.2", "10.8.0.3"]}


def test_only_a_commit_is_a_commit():
    assert commit_of(host("a", "10.0.0.1", weights_revision="c" * 40)) == "c" * 40
    assert commit_of(host("a", "10.0.0.1", weights_revision="main")) == ""
