from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from provision.errors import LabError
from provision.lab import network
from provision.lab.network import Network


def test_names_fit_an_interface_and_addresses_do_not_meet() -> None:
    net = Network("0f5ad557", IPv4Network("10.85.87.0/24"))
    assert len(net.bridge) <= 15
    assert len(f"vb-{net.fleet}-{network.MOST_HOSTS - 1}") <= 15
    assert str(net.gateway) == "10.85.87.1"
    assert str(net.address(0)) == "10.85.87.11"
    assert str(net.address(network.MOST_HOSTS - 1)) == "10.85.87.250"


def test_a_subnet_is_chosen_around_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[IPv4Network] = []
    monkeypatch.setattr(network, "_taken", lambda: taken)
    first = network._free_subnet("0f5ad557")
    assert first == network._free_subnet("0f5ad557")
    taken.append(first)
    second = network._free_subnet("0f5ad557")
    assert not second.overlaps(first)
    taken.append(IPv4Network("10.0.0.0/9"))
    with pytest.raises(LabError, match="ip route"):
        network._free_subnet("0f5ad557")


def test_routes_to_everywhere_take_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = '[{"dst": "default"}, {"dst": "10.0.0.0/8"}, {"dst": "10.99.1.0/24"}, {"dst": "10.99.1.1"}]'

    class Done:
        stdout = routes

    monkeypatch.setattr(network.process, "call", lambda *_: Done)
    taken = network._taken()
    assert IPv4Network("10.99.1.0/24") in taken
    assert IPv4Network("10.99.1.1/32") in taken
    assert all(each.prefixlen > 8 for each in taken)


def test_a_subnet_that_something_else_uses_now_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_taken", lambda: [IPv4Network("10.85.0.0/16")])
    with pytest.raises(LabError, match=r"10\.85\.87\.0/24 is now also 10\.85\.0\.0/16"):
        network._refuse_overlap(IPv4Network("10.85.87.0/24"))
