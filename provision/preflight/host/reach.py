"""Whether this host reaches what a bootstrap fetches from, as it will: with the inventory's proxies and authorities.

Each address is tried once, all at once, for a few seconds. Nothing of what they send is kept.
"""

from __future__ import annotations

import base64
import fnmatch
import ipaddress
import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.provision_driver import system_name
from ansible.module_utils.provision_host import read_text, run

from provision.preflight.host.packages import apt_settings

TIMEOUT_S, TOGETHER_S = 5, 15
LARGEST = 32 << 20  # bytes of a model's list of files
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"
LISTS = Path("/etc/apt")
PASSWORD = re.compile(r"://[^/\s@]*@")


def look(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each address: what it is for, through which proxy, and what came back."""
    wanted = asked["reach"]
    proxies = dict(wanted["proxies"]) if any(wanted["proxies"].values()) else own_proxies()
    places = [*wanted["endpoints"], *apt_places(wanted["apt_sources"])]
    found: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda each=each: found.append(_try(each, proxies, wanted)), daemon=True)
        for each in places
    ]
    deadline = time.monotonic() + TOGETHER_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    done = {(each["use"], each["url"]) for each in found}
    late = [_result(each, "", "timeout", f"no answer within {TOGETHER_S} s") for each in places]
    return sorted([*found, *(one for one in late if (one["use"], one["url"]) not in done)], key=lambda one: one["use"])


def own_proxies() -> dict[str, str]:
    """The proxies that apt is set to use here, where the inventory has none."""
    settings = apt_settings(run(["apt-config", "dump"], check=False, timeout_s=20).out)
    found = {kind: settings.get(f"Acquire::{kind}::Proxy", [""])[-1] for kind in ("http", "https")}
    return {kind: value for kind, value in found.items() if value and value != "DIRECT"}


def apt_places(inventory: Mapping[str, str]) -> list[dict[str, Any]]:
    """The sources of apt as they will be: the inventory's files take the place of those of the same name."""
    texts = {path.name: read_text(str(path)) or "" for path in sorted(LISTS.glob("sources.list.d/*"))}
    texts = {name: text for name, text in texts.items() if not name.startswith("provision-")}
    texts["sources.list"] = "" if inventory else read_text(str(LISTS / "sources.list")) or ""
    texts.update({f"{name}.sources": text for name, text in inventory.items()})
    found: dict[str, dict[str, Any]] = {}
    for name, text in texts.items():
        for url in deb822(text) if name.endswith(".sources") else one_line(text) if name.endswith(".list") else ():
            found.setdefault(url, {"use": "apt", "named": f"apt ({name})", "url": url})
    return list(found.values())


def deb822(text: str) -> Iterator[str]:
    """The addresses to try of sources in apt's newer form."""
    for block in re.split(r"\n\s*\n", text):
        text = re.sub(r"\n[ \t]+", " ", "\n".join(line for line in block.splitlines() if not line.startswith("#")))
        parts = (line.partition(":") for line in text.splitlines())
        fields = {name.strip().lower(): value.split() for name, _, value in parts}
        if fields.get("enabled") == ["no"] or "deb" not in fields.get("types", []):
            continue
        for uri in fields.get("uris", []):
            for suite in fields.get("suites", [])[:1]:
                yield from _index(uri, suite)


def one_line(text: str) -> Iterator[str]:
    """The addresses to try of sources in apt's older form."""
    for uri, suite in re.findall(r"^\s*deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)", text, re.MULTILINE):
        yield from _index(uri, suite)


def _index(uri: str, suite: str) -> Iterator[str]:
    """Where the index of a source lies; nothing for what is no web address."""
    if uri.startswith(("http://", "https://")):
        folder = suite.strip("/") if suite.endswith("/") else f"dists/{suite}"
        yield "/".join([uri.rstrip("/"), *filter(None, [folder]), "InRelease"])


def _try(place: Mapping[str, Any], proxies: Mapping[str, str], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """One address, and what came of it."""
    url = place["url"].replace("{os}", system_name())
    if place["use"] == "path":
        return _result(place, "", "" if Path(url).exists() else "missing", "it is not there")
    parts = urllib.parse.urlsplit(url)
    proxy = "" if bypasses(parts.hostname or "", wanted["no_proxy"]) else proxies.get(parts.scheme, "")
    headers = {"User-Agent": "provision-preflight"}
    if place.get("token"):
        headers["Authorization"] = f"Bearer {place['token']}"
    elif parts.username:  # urllib would take it for a part of the host's name
        login = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}")
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        opener = _opener(proxy, wanted["certificates"])
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - the inventory's or apt's
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            size = files_size(answer.read(LARGEST), place["exclude"]) if "exclude" in place else 0
        return {**_result(place, proxy, "", ""), "bytes": size}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is put into words
        return _result(place, proxy, *explain(error))


def _opener(proxy: str, certificates: Sequence[str]) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    for pem in certificates:
        context.load_verify_locations(cadata=pem)
    handlers = [urllib.request.ProxyHandler({"http": proxy, "https": proxy} if proxy else {})]
    return urllib.request.build_opener(*handlers, urllib.request.HTTPSHandler(context=context))


def explain(error: Exception) -> tuple[str, str]:
    """What kind of failure it is, and in words."""
    if isinstance(error, urllib.error.HTTPError):
        return f"http {error.code}", f"it answers {error.code}"
    cause = getattr(error, "reason", error)
    if isinstance(cause, socket.gaierror):
        return "dns", "its name does not resolve"
    if isinstance(cause, ssl.SSLCertVerificationError):
        known = Path(AUTHORITIES).exists()
        return "certificate" if known else "", f"its certificate is refused: {cause.verify_message}"
    if isinstance(cause, (socket.timeout, TimeoutError)):
        return "timeout", f"no answer within {TIMEOUT_S} s"
    return "connection", str(cause)


def _result(place: Mapping[str, Any], proxy: str, failure: str, said: str) -> dict[str, Any]:
    return {
        "use": place["use"],
        "named": place["named"],
        "url": PASSWORD.sub("://***@", place["url"].replace("{os}", system_name())),
        "proxy": PASSWORD.sub("://***@", proxy),
        "failure": failure,
        "said": PASSWORD.sub("://***@", said) if failure else "",
        "bytes": 0,
    }


def bypasses(host: str, exceptions: Sequence[str]) -> bool:
    """Whether a host is reached without the proxy: it is named, or lies in a domain or network that is."""
    for name in exceptions:
        if host == name or host.endswith(f".{name.lstrip('.')}") or name == "*":
            return True
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                return True
        except ValueError:
            continue
    return False


def files_size(text: bytes, excluded: Sequence[str]) -> int:
    """The size of all files of a model, by the hub's list, but those that are not wanted."""
    return sum(
        entry["size"]
        for entry in json.loads(text)
        if entry["type"] == "file"
        and not (entry["path"].startswith(".") or "/." in entry["path"])
        and not any(fnmatch.fnmatch(entry["path"], pattern) for pattern in excluded)
    )
