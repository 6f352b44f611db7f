"""What a host is asked follows from the inventory, and nothing else."""

from __future__ import annotations

import json

import pytest

from provision.preflight.bundle import program
from provision.preflight.request import SETTINGS, fitness_wanted, ports, request_of, size_of


def asked(fleet, name):
    return request_of(fleet.hosts[name], fleet.replica_of(name))


def test_ports_of_head_worker_and_a_host_alone(fleet) -> None:
    head, worker, alone = (ports(fleet.hosts[name], fleet.replica_of(name)) for name in ("n1", "n2", "n3"))
    assert {each["from"] for each in head} == {6379, 6380, 6381, 6382, 6383, 6384, 6385, 10001, 8000, 8001, 10002}
    assert head[-1] == {"wanted_by": "ray_ports.workers", "from": 10002, "to": 19999}
    assert {"ray_ports.cluster", "ray_ports.client", "vllm_port"}.isdisjoint(each["wanted_by"] for each in worker)
    assert alone == [
        {"wanted_by": f"vllm_{name}port", "from": n, "to": n} for name, n in (("", 8000), ("health_", 8001))
    ]


ONE_OVER_TWO, TWO_COPIES = "vllm_executor: mp\n", "vllm_data_parallel_size: 2\nvllm_pipeline_parallel_size: 1\n"


@pytest.mark.parametrize(("pair", "port"), [(ONE_OVER_TWO, "master"), (TWO_COPIES, "data_parallel")])
def test_ports_of_hosts_that_are_joined_without_ray(make_fleet, pair, port) -> None:
    fleet = make_fleet(pair=pair)
    head, worker = (ports(fleet.hosts[name], fleet.replica_of(name)) for name in ("n1", "n2"))
    assert [each["wanted_by"] for each in head] == ["vllm_port", "vllm_health_port", f"vllm_ports.{port}"]
    assert worker == []


def test_addresses_that_are_tried(make_fleet) -> None:
    fleet = make_fleet(
        "site_https_proxy: http://proxy:3128\nsite_no_proxy: [.inside]\nweights_endpoint: https://hub.inside/\n"
        "site_python_index_url: https://py.inside/simple/\nsite_python_find_links: [/wheels, 'https://more.inside/x']\n"
        "driver_repository_url: https://mirror.inside/{os}\nweights_token: geheim\nweights_exclude: ['*.pth']\n"
    )
    reach = asked(fleet, "n1")["reach"]
    assert [(each["use"], each["url"]) for each in reach["endpoints"]] == [
        ("driver", "https://mirror.inside/{os}/InRelease"),
        ("python", "https://py.inside/simple/uv/"),
        ("path", "/wheels"),
        ("python extra", "https://more.inside/x"),
        ("weights", "https://hub.inside/api/models/lab/tiny/tree/main?recursive=true&expand=false"),
    ]
    assert reach["proxies"] == {"http": "", "https": "http://proxy:3128"}
    assert reach["no_proxy"] == [".inside"]
    assert (reach["endpoints"][-1]["token"], reach["endpoints"][-1]["exclude"]) == ("geheim", ["*.pth"])


def test_paths_and_room(fleet, make_fleet) -> None:
    assert asked(fleet, "n1")["paths"] == {
        "software": "/opt", "state": "/var", "weights": "/data/models", "swap": "/swapfile",
    }  # fmt: skip
    assert asked(fleet, "n1")["free_at"] == ["/opt", "/var"]
    assert "swap" not in asked(make_fleet(""), "n1")["paths"]
    assert "swap" not in asked(make_fleet("swap_size: 4G\nswap_mode: partition\nswap_path: /dev/x\n"), "n1")["paths"]
    assert fitness_wanted(fleet.hosts["n1"])["min_free_disk"] == {"/opt": 25 * 2**30, "/var": 10 * 2**30}


@pytest.mark.parametrize(
    ("text", "size"), [("64G", 64 * 2**30), ("512M", 2**29), ("1.5T", 3 * 2**39), ("0", 0), (None, 0), ("2GiB", 2**31)]
)
def test_sizes(text, size) -> None:
    assert size_of(text) == size


def test_authorities_of_the_site_travel_along(make_fleet, tmp_path) -> None:
    (tmp_path / "ca.pem").write_text("PEM\n")
    fleet = make_fleet(f"site_ca_certificates: [{tmp_path}/ca.pem, {tmp_path}/none.pem]\n")
    assert asked(fleet, "n1")["reach"]["certificates"] == ["PEM\n"]


def test_every_setting_that_is_asked_for_exists(fleet) -> None:
    unknown = [name for name in SETTINGS if fleet.hosts["n1"].setting(name) is None]
    assert unknown == []


def test_a_secret_is_in_the_text_alone(fleet) -> None:
    text = program(json.dumps({"token": "geheim"}))
    assert text.count("geheim") == 1
    assert "geheim" not in program("{}")  # nothing of another call is kept
