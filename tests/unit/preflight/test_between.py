"""What must be alike between hosts."""

from __future__ import annotations

from provision.preflight import Severity
from provision.preflight.rules import between

RULES = [between.mtu, between.rdma_mtu, between.rdma_alike, between.drivers, between.firmware, between.kernels]


def pair(host, **of_the_second):
    return [host("n1"), host("n2", {place.replace("__", "."): value for place, value in of_the_second.items()})]


def test_a_pair_that_is_alike(host) -> None:
    assert [finding for rule in [*RULES, between.twins, between.clocks] for finding in rule(pair(host))] == []


def test_one_mtu_among_peers(host) -> None:
    (found,) = between.mtu(pair(host, net__interfaces__0__mtu=9000))
    assert found.severity == Severity.WARNING
    assert found.hosts == ("n1", "n2")
    assert "n1 1400 (host0); n2 9000 (host0)" in found.message


def test_one_mtu_among_rdma_ports(host) -> None:
    one = host("n1", {f"rdma.ports.{number}.mtu": 4096 for number in range(9)})
    other = host("n2", {f"rdma.ports.{number}.mtu": 2048 for number in range(9)})
    assert "n1 4096; n2 2048" in next(iter(between.rdma_mtu([one, other]))).message


def test_ports_that_are_up_on_one_only(host) -> None:
    (found,) = between.rdma_alike(pair(host, rdma__ports__1__state="DOWN"))
    assert (
        "n2 1 \N{MULTIPLICATION SIGN} Ethernet 200 Gb/s, 7 \N{MULTIPLICATION SIGN} InfiniBand 400 Gb/s" in found.message
    )


def test_drivers_firmware_and_kernels(host) -> None:
    (driver,) = between.drivers(pair(host, nvidia__loaded="580.95.05"))
    assert (driver.severity, driver.check) == (Severity.WARNING, "driver")
    (firmware,) = between.firmware(pair(host, rdma__ports__0__firmware="28.39.1002"))
    assert (firmware.severity, "MT4129" in firmware.message) == (Severity.NOTE, True)
    (kernel,) = between.kernels(pair(host, base__system__kernel="6.1.0-41-amd64"))
    assert "n2 6.1.0-41-amd64" in kernel.message


def test_one_machine_by_two_names(host) -> None:
    (found,) = between.twins(pair(host, machine__boot_id="n1"))
    assert found.severity == Severity.BLOCKER
    assert "n1 and n2 are one machine (10.0.0.1, 10.0.0.2)" in found.message


def test_clocks_that_are_surely_apart(host) -> None:
    on_time = [host("n1"), host("n3", ahead=(-0.3, 0.2))]
    (found,) = between.clocks([*on_time, host("n2", ahead=(5.0, 5.5))])
    assert found.message.startswith("n2: its clock is 4.")
    assert found.hosts[0] == "n2"
    assert list(between.clocks([*on_time, host("n2", ahead=(-3.0, 5.5))])) == []  # too slow an answer to tell
    assert list(between.clocks(on_time[:1])) == []
