"""The overlay: a second inventory source. How to reach the simulated hosts, and what stands in for the world."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from provision.lab import login, machine
from provision.lab.host import LabHost

CACHE_ON_HOST = "/var/cache/provision/uv"


def world(directory: Path, repository: str, hub: str) -> dict[str, object]:
    """The variables that hold for every host; `repository` and `hub` are URLs on the fleet's network."""
    index = machine.python_index()
    variables: dict[str, object] = {
        "lab": True,
        "ansible_port": 22,
        "ansible_user": login.USER,
        "ansible_ssh_private_key_file": str(directory / login.KEY),
        "ansible_ssh_common_args": shlex.join(login.ssh_arguments(directory)),
        "ansible_ssh_extra_args": "",  # no detour by the real site's jump host
        "site_ca_certificates": machine.certificates(),
        "site_python_find_links": list(index.find_links),
        "site_python_extra_index_urls": list(index.extra_index_urls),
        "driver_repository_url": repository,
        "driver_repository_key": str(directory / "world/apt/key.asc"),
        "weights_endpoint": hub,
        "cuda_nccl_tests": False,  # nothing here compiles or runs CUDA code
        "serving_env_build": "cpu",
        "ray_interface": "host0",
        "gateway_max_connections": 8000,  # simulated hosts open no more files than this machine lets them
    }
    if index.index_url:
        variables["site_python_index_url"] = index.index_url
    return variables


def write(
    directory: Path,
    hosts: Iterable[LabHost],
    common: Mapping[str, object],
    group: str | None,
    own: Mapping[str, Mapping[str, object]] | None = None,
) -> None:
    """Write `overlay/` below the fleet's directory, whole or not at all; `own` are more variables by host.

    Without `group` the hosts are only given variables: the user's own inventory says what they are. With it they are
    also one replica of that name, and told what they simulate.
    """
    new, target = directory / ".overlay.new", directory / "overlay"
    shutil.rmtree(new, ignore_errors=True)
    (new / "host_vars").mkdir(parents=True)
    names: dict[str, None] = {}
    for host in hosts:
        names[host.name] = None
        variables = {
            "ansible_host": host.address,
            "ray_address": host.address,
            **common,
            **(own or {}).get(host.name, {}),
        }
        if group:
            variables["hardware_profile"] = host.profile
        _dump(new / "host_vars" / f"{host.name}.yml", variables)
    tree: dict[str, object] = {"all": {"hosts": names}}
    if group:
        tree = {"serving": {"children": {group: {"hosts": names}}}}
    _dump(new / "hosts.yml", tree)
    shutil.rmtree(target, ignore_errors=True)
    new.rename(target)


def _dump(path: Path, data: Mapping[str, object]) -> None:
    head = "# Written by `provision lab up`; the next one overwrites it.\n"
    path.write_text(head + yaml.safe_dump(data, sort_keys=False, width=1000), encoding="utf-8")
