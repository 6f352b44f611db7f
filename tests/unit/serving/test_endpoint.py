"""Asking an endpoint, against a real HTTP server on the loopback that speaks as vLLM streams."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from provision.serving.endpoint import Endpoint, EndpointError, ask


class Api(BaseHTTPRequestHandler):
    answer: tuple[str, ...] = ("Hel", "lo")
    key = "secret"

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {self.key}":
            self.send_error(401, "no key")
            return
        self.send_response(200)
        self.end_headers()
        for word in self.answer:
            self.event({"choices": [{"delta": {"content": word}}]})
        self.event({"choices": [], "usage": {"completion_tokens": len(self.answer)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, body: object) -> None:
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_answer_arrives_piece_by_piece(url: str) -> None:
    pieces: list[str] = []
    answer = ask(Endpoint(url, "tiny", "secret"), "Hello?", on_text=pieces.append)
    assert pieces == ["Hel", "lo"]
    assert (answer.text, answer.tokens) == ("Hello", 2)
    assert 0 < answer.first_token_s <= answer.total_s


def test_a_refusal_is_told_without_the_key(url: str) -> None:
    with pytest.raises(EndpointError, match="HTTP 401") as caught:
        ask(Endpoint(url, "tiny", "wrong-key"), "Hello?")
    assert "wrong-key" not in str(caught.value)


def test_no_token_is_no_answer(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Api, "answer", ())
    with pytest.raises(EndpointError, match="generated no token"):
        ask(Endpoint(url, "tiny", "secret"), "Hello?")


def test_nothing_listens() -> None:
    with pytest.raises(EndpointError, match="does not answer"):
        ask(Endpoint("http://127.0.0.1:9", "tiny"), "Hello?", timeout_s=2)
