"""What a host is asked, from the inventory alone: its paths, ports, addresses, proxies, weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from provision.content import hardware_profiles
from provision.inventory.model import Fleet, Host, Replica

# Settings whose defaults are asked for.
SETTINGS = (
    "preflight_supported_os", "preflight_min_free_disk", "preflight_reserve_disk", "preflight_check_memory",
    "preflight_max_clock_skew", "preflight_allow_secure_boot", "site_ca_certificates", "site_http_proxy",
    "site_https_proxy", "site_no_proxy", "site_apt_sources", "site_python_index_url", "site_python_extra_index_urls",
    "site_python_find_links", "swap_mode", "swap_size", "swap_path", "driver_version", "driver_repository_url",
    "driver_repository_suite", "driver_kernel_headers", "driver_kernel_modules", "reboot_allowed",
    "host_apt_lock_timeout", "host_time_sync",
    "weights_repo", "weights_revision", "weights_dir", "weights_endpoint", "weights_token", "weights_exclude",
    "weights_source", "weights_uplink",
    "ray_ports", "ray_interface", "vllm_port", "vllm_health_port", "vllm_ports", "lab",
)  # fmt: skip
HUB = "https://huggingface.co"
POWERS = " KMGT"
HEADS_OWN = ("ray_ports.cluster", "ray_ports.client")


def request_of(host: Host, replica: Replica) -> dict[str, Any]:
    """What is asked of one host. It may hold a token: it goes to the host's Python as text, and nowhere else."""
    return {
        "paths": paths(host),
        "free_at": list(fitness_wanted(host)["min_free_disk"]),
        "headers": bool(host.setting("driver_kernel_headers")),
        "ports": ports(host, replica),
        "weights": {"dir": str(host.setting("weights_dir")), "repo": str(host.setting("weights_repo") or "")},
        "reach": {
            "endpoints": [*_repositories(host), *_hub(host)],
            "apt_sources": host.setting("site_apt_sources") or {},
            "proxies": {kind: str(host.setting(f"site_{kind}_proxy") or "") for kind in ("http", "https")},
            "no_proxy": [str(name) for name in _list(host, "site_no_proxy")],
            "certificates": list(_certificates(host)),
        },
    }


def paths(host: Host) -> dict[str, str]:
    """The paths that a bootstrap writes to, by what they are for."""
    swap = {"swap": str(host.setting("swap_path"))} if wanted_swap(host) else {}
    return {"software": "/opt", "state": "/var", "weights": str(host.setting("weights_dir")), **swap}


def wanted_swap(host: Host) -> int:
    """The size of the swap file, 0 for none."""
    return size_of(host.setting("swap_size")) if host.setting("swap_mode") == "file" else 0


def size_of(text: object) -> int:
    """A size such as 64G in bytes."""
    found = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)i?B?\s*", str(text or "0"), re.IGNORECASE)
    return int(float(found[1]) * 1024 ** POWERS.index(found[2].upper() or " ")) if found else 0


def fitness_wanted(host: Host) -> dict[str, Any]:
    """What the stage preflight is told of this host (`provision_fitness.objections`)."""
    asked = host.setting("preflight_min_free_disk")
    sizes = {str(path): size_of(size) for path, size in asked.items()} if isinstance(asked, Mapping) else {}
    return {
        "profile_name": str(host.setting("hardware_profile") or ""),
        "profiles": hardware_profiles(),
        "supported_os": host.setting("preflight_supported_os") or {},
        "min_free_disk": sizes,
        "reserve_disk": size_of(host.setting("preflight_reserve_disk")),
        "check_memory": bool(host.setting("preflight_check_memory")),
        "allow_secure_boot": bool(host.setting("preflight_allow_secure_boot")),
    }


def ports(host: Host, replica: Replica) -> list[dict[str, Any]]:
    """The TCP ports that Ray and vLLM take on this host, single ones before ranges."""
    given = host.setting("ray_ports")
    numbers = given if isinstance(given, Mapping) and replica.joined_by_ray else {}
    single = {f"ray_ports.{name}": number for name, number in numbers.items() if not str(name).startswith("workers_")}
    if host == replica.head:
        single |= {name: host.setting(name) for name in ("vllm_port", "vllm_health_port")} | _own_ports(replica)
    else:
        single = {name: number for name, number in single.items() if name not in HEADS_OWN}
    found = [{"wanted_by": name, "from": int(port), "to": int(port)} for name, port in single.items() if port]
    if numbers.get("workers_from"):
        wide = {"from": int(numbers["workers_from"]), "to": int(numbers["workers_to"])}
        found.append({"wanted_by": "ray_ports.workers", **wide})
    return found


def _own_ports(replica: Replica) -> dict[str, object]:
    """By which the hosts of a replica find each other without Ray: one of the two."""
    given = replica.head.setting("vllm_ports")
    if replica.joined_by_ray or len(replica.hosts) == 1 or not isinstance(given, Mapping):
        return {}
    name = "master" if replica.is_one_copy else "data_parallel"
    return {f"vllm_ports.{name}": given.get(name)}


def _repositories(host: Host) -> Iterator[dict[str, Any]]:
    """The driver's repository, and where Python packages come from."""
    base, suite = str(host.setting("driver_repository_url")).rstrip("/"), str(host.setting("driver_repository_suite"))
    if host.setting("hardware_profile"):
        folder = "" if suite == "/" else suite if suite.endswith("/") else f"dists/{suite}/"
        url = f"{base}/{folder}InRelease"
        yield {"use": "driver", "named": "driver_repository_url", "url": url}
    if index := str(host.setting("site_python_index_url") or ""):
        yield {"use": "python", "named": "site_python_index_url", "url": f"{index.rstrip('/')}/uv/"}
    for extra in _list(host, "site_python_extra_index_urls"):
        yield {"use": "python extra", "named": "site_python_extra_index_urls", "url": str(extra)}
    for link in _list(host, "site_python_find_links"):
        use = "python extra" if "://" in str(link) else "path"
        if not str(link).startswith("file:"):
            yield {"use": use, "named": "site_python_find_links", "url": str(link)}


def _hub(host: Host) -> Iterator[dict[str, Any]]:
    """The model's list of files at the hub, which also tells its size. Other sources take their clients to be asked."""
    is_asked = host.setting("weights_source") == "huggingface" and host.setting("weights_uplink")
    if is_asked and (repo := host.setting("weights_repo")):
        base = str(host.setting("weights_endpoint") or HUB).rstrip("/")
        url = f"{base}/api/models/{repo}/tree/{host.setting('weights_revision')}?recursive=true&expand=false"
        exclude = [str(pattern) for pattern in _list(host, "weights_exclude")]
        token = str(host.setting("weights_token") or "")
        yield {"use": "weights", "named": "weights_endpoint", "url": url, "exclude": exclude, "token": token}


def _certificates(host: Host) -> Iterator[str]:
    """The site's certificate authorities, which a host does not trust before the stage site."""
    for name in _list(host, "site_ca_certificates"):
        path = Path(str(name))
        if path.is_file():  # else the stage site says so
            yield path.read_text(encoding="utf-8")


def _list(host: Host, name: str) -> Sequence[object]:
    value = host.setting(name)
    return value if isinstance(value, (list, tuple)) else []


def profile_of(host: Host) -> Mapping[str, Any]:
    """The host's hardware profile; empty where none is named or known."""
    return hardware_profiles().get(str(host.setting("hardware_profile") or ""), {})


def of_all(fleet: Fleet) -> Iterator[tuple[Replica, Host]]:
    """Every serving host with its replica."""
    for replica in fleet.replicas:
        for host in replica.hosts:
            yield replica, host
