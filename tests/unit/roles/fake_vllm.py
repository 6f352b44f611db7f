"""What answers as vLLM does, as far as a gateway can tell.

A request's body says how it is answered: `tokens`, `pause` (seconds before each), `stream`. What it was sent it tells
at /seen. `hang` stops all answers, as an engine that is dead behind an API that is not.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

STATE = {"name": "", "running": 0, "tokens": 0, "hang": False}
SEEN: list[dict] = []
LOCK = threading.Lock()


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, text: str, kind: str = "application/json") -> None:
        self.send_response(200)
        for name, value in (("Content-Type", kind), ("Content-Length", str(len(text))), ("X-Replica", STATE["name"])):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        lines = {
            "num_requests_running": STATE["running"],
            "num_requests_waiting": 0,
            "prompt_tokens_total": 0,
            "generation_tokens_total": STATE["tokens"],
        }
        pages = {
            "/metrics": "".join(f'vllm:{name}{{engine="0"}} {float(value)}\n' for name, value in lines.items()),
            "/seen": json.dumps(SEEN),
            "/health": "",
            "/v1/models": json.dumps({"data": [{"id": "tiny"}]}),
        }
        if self.path in ("/hang", "/wake"):
            STATE["hang"] = self.path == "/hang"
        self.answer(pages.get(self.path, "{}"))

    def token(self, pause: float) -> None:
        time.sleep(pause)
        while STATE["hang"]:
            time.sleep(0.05)
        with LOCK:
            STATE["tokens"] += 1

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with LOCK:
            SEEN.append({"path": self.path, "authorization": self.headers.get("Authorization", "")})
            STATE["running"] += 1
        try:
            self.generate(body.get("tokens", 1), body.get("pause", 0), body.get("stream", False))
        finally:
            with LOCK:
                STATE["running"] -= 1

    def generate(self, tokens: int, pause: float, stream: bool) -> None:
        if not stream:
            for _ in range(tokens):
                self.token(pause)
            self.answer(json.dumps({"usage": {"completion_tokens": tokens}, "choices": []}))
            return
        self.send_response(200)
        for name, value in (
            ("Content-Type", "text/event-stream"),
            ("X-Replica", STATE["name"]),
            ("Transfer-Encoding", "chunked"),
        ):
            self.send_header(name, value)
        self.end_headers()
        for number in range(tokens):
            self.token(pause)
            self.chunk(f"data: {number}\n\n")
        self.chunk("data: [DONE]\n\n")
        self.chunk("")

    def chunk(self, text: str) -> None:
        self.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *args: object) -> None:
        """Gateways hang up on checks, and clients on answers."""


def serve(name: str, address: str, port: int) -> None:
    """Answer for ever, in a process of its own."""
    STATE["name"] = name
    Server((address, port), Api).serve_forever()
