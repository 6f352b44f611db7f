"""Clients that ask a served model without pause, and what became of each of their requests."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

PATIENCE_S = 120.0  # without a byte, after which a request counts as failed
PAUSE_S = 0.5  # of a client between two requests


@dataclass(frozen=True)
class Request:
    """One request as its client saw it: times in seconds of the machine's clock; `error` is empty if all of it came."""

    begun: float
    ended: float
    streamed: bool
    error: str


class Clients:
    """`count` clients of the API at `url`, every other one with streams, as long as it is entered."""

    def __init__(self, url: str, model: str, count: int, tokens: int = 16) -> None:
        place = urlsplit(url)
        self._host, self._port = place.hostname or "", place.port or 80
        self._model, self._tokens = model, tokens
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._go, args=(n % 2 == 0,), daemon=True) for n in range(count)]
        self.requests: list[Request] = []

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S + 10)

    def failed(self, since: float = 0) -> Sequence[Request]:
        """The requests that failed among those that ended after a moment."""
        return [one for one in list(self.requests) if one.error and one.ended >= since]

    def _go(self, streamed: bool) -> None:
        while not self._stop.is_set():
            begun = time.time()
            try:
                error = self._ask(streamed)
            except (OSError, http.client.HTTPException, ValueError) as trouble:
                error = f"{type(trouble).__name__}: {trouble}"
            self.requests.append(Request(begun, time.time(), streamed, error))
            self._stop.wait(PAUSE_S)

    def _ask(self, streamed: bool) -> str:
        """What is wrong with the answer to one question."""
        body = {"model": self._model, "prompt": "A GPU is", "max_tokens": self._tokens, "ignore_eos": True}
        connection = http.client.HTTPConnection(self._host, self._port, timeout=PATIENCE_S)
        try:
            connection.request(
                "POST",
                "/v1/completions",
                json.dumps({**body, "stream": streamed}),
                {"Content-Type": "application/json"},
            )
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        if answer.status != http.client.OK:
            return f"HTTP {answer.status}: {text[:200].decode(errors='replace')}"
        if streamed:
            return "" if text.rstrip().endswith(b"data: [DONE]") else "the stream ended before its end"
        tokens = json.loads(text)["usage"]["completion_tokens"]
        return "" if tokens == self._tokens else f"{tokens} tokens instead of {self._tokens}"
