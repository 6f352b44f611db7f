"""Talking to a served model as its users do: through the OpenAI API, streamed."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from provision.errors import ProvisionError
from provision.inventory.model import Fleet, Replica


class EndpointError(ProvisionError):
    """The endpoint did not answer as an OpenAI API that generates tokens does."""


@dataclass(frozen=True)
class Endpoint:
    """Where one replica answers.

    `url` is the API's base, such as http://10.0.0.4:8000; `model` the name that requests must give.
    """

    url: str
    model: str
    api_key: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came back for one question: the text, and when its first and last token arrived, in seconds."""

    text: str
    first_token_s: float
    total_s: float
    tokens: int


def endpoint_of(replica: Replica) -> Endpoint:
    """Where a replica answers, from the inventory alone."""
    head = replica.head
    key = head.setting("vllm_api_key")
    url = f"http://{head.setting('vllm_host')}:{head.setting('vllm_port')}"
    return Endpoint(url, str(head.setting("vllm_served_model_name")), str(key) if key else None)


def told_to_gateways(fleet: Fleet) -> dict[str, dict[str, object]]:
    """What the role gateway needs to know of each replica: its head, and where that answers and tells of its engine."""
    found: dict[str, dict[str, object]] = {}
    for replica in fleet.replicas:
        head = replica.head
        address = str(head.setting("vllm_host"))
        found[replica.name] = {
            "head": head.name,
            "address": head.ray_address if address in ("0.0.0.0", "::") else address,  # noqa: S104
            "port": _number(head.setting("vllm_port")),
            "health_port": _number(head.setting("vllm_health_port")),
        }
    return found


def _number(setting: object) -> int | str:
    """A port as a number, where it is one."""
    text = str(setting)
    return int(text) if text.isdigit() else text


def ask(
    endpoint: Endpoint,
    question: str,
    *,
    max_tokens: int = 64,
    timeout_s: float = 60,
    on_text: Callable[[str], object] = str,
) -> Answer:
    """Ask one question through `/v1/chat/completions`, handing over each piece of text as it arrives.

    Raises EndpointError if nothing listens, the API refuses, or no token comes within `timeout_s` seconds.
    """
    body = {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = time.monotonic()
    first, tokens, pieces = 0.0, 0, []
    for event in _events(endpoint, body, timeout_s):
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        for choice in event.get("choices", []):
            if piece := (choice.get("delta") or {}).get("content"):
                first = first or time.monotonic() - start
                pieces.append(piece)
                on_text(piece)
    if not tokens:
        raise EndpointError(f"{endpoint.url} accepted the question, but generated no token.")
    return Answer("".join(pieces), first, time.monotonic() - start, tokens)


def _events(endpoint: Endpoint, body: dict[str, Any], timeout_s: float) -> Iterator[dict[str, Any]]:
    """The JSON of each server-sent event of one request."""
    headers = {"Content-Type": "application/json"}
    if endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    request = urllib.request.Request(  # noqa: S310  the URL is built from a validated inventory
        f"{endpoint.url}/v1/chat/completions", json.dumps(body).encode(), headers
    )
    # Straight to the host, past any proxy that the environment names: proxies are for registries, not for the fleet.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as response:
            for line in response:
                data = line.removeprefix(b"data: ").strip()
                if line.startswith(b"data: ") and data != b"[DONE]":
                    yield json.loads(data)
    except urllib.error.HTTPError as error:
        detail = error.read(500).decode(errors="replace")
        raise EndpointError(f"{endpoint.url} refused the question with HTTP {error.code}: {detail}") from error
    except (OSError, ValueError) as error:
        raise EndpointError(f"{endpoint.url} does not answer: {getattr(error, 'reason', error)}.") from error
