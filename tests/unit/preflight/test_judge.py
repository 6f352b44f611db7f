"""Findings of a whole fleet: in order, without what could not be seen, and of hosts that did not answer."""

from __future__ import annotations

from provision.preflight import Severity, Sight, judge
from provision.ssh.trouble import Trouble

GONE = Trouble("timeout", "10.0.0.2 did not answer within 10 s.", "Is it up?", unreachable=True)
DENIED = Trouble("no_sudo", "ops cannot use sudo without a password.", "Allow it there.")


def sight(seen) -> Sight:
    return Sight(seen.host, seen.replica, seen.facts, None, seen.ahead)


def gone(fleet, name: str, trouble: Trouble) -> Sight:
    return Sight(fleet.hosts[name], fleet.replica_of(name), trouble=trouble)


def test_the_worst_comes_first(fleet, host) -> None:
    found = judge(fleet, [sight(host("n1", {"nvidia.fabric_manager": "failed", "packages.interrupted": True}))])
    order = [finding.severity for finding in found]
    assert order == sorted(order, key=[Severity.BLOCKER, Severity.WARNING, Severity.NOTE, Severity.OK].index)
    assert {finding.hosts for finding in found} == {("n1",)}


def test_hosts_that_do_not_answer_are_findings(fleet, host) -> None:
    found = judge(fleet, [sight(host("n1")), gone(fleet, "n2", GONE), gone(fleet, "n3", DENIED)])
    told = {finding.check: (finding.severity, finding.hosts, finding.todo) for finding in found}
    assert told["unreachable"] == (Severity.BLOCKER, ("n2",), "Is it up?")
    assert told["login"] == (Severity.BLOCKER, ("n3",), "Allow it there.")


def test_rules_say_nothing_of_what_was_not_seen(fleet, host) -> None:
    blind = {"errors": {"nvidia": "it took more than 75 s", "rdma": "OSError: x"}, "nvidia": {}, "rdma": {}}
    found = judge(fleet, [sight(host("n1", blind)), sight(host("n2"))])
    looked = [finding for finding in found if finding.check == "look"]
    assert [finding.message for finding in looked] == [
        "its nvidia could not be looked at: it took more than 75 s.",
        "its rdma could not be looked at: OSError: x.",
    ]
    assert not [each for each in found if each.check in ("driver", "rdma", "gpudirect") and "n1" in each.hosts]


def test_peers_are_compared_within_their_replica(fleet, host) -> None:
    other = host("n3", {"net.interfaces.0.mtu": 9000})
    assert not [each for each in judge(fleet, [sight(host("n1")), sight(other)]) if each.check == "mtu"]
    peer = host("n2", {"net.interfaces.0.mtu": 9000})
    assert [each for each in judge(fleet, [sight(host("n1")), sight(peer)]) if each.check == "mtu"]
