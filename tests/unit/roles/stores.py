"""Places that weights come from, as far as their clients ask: a hub that can misbehave, a bucket, and ModelScope."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
import socket
import struct
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from provision.lab.hub import Handler, Hub


def make_model(directory: Path, shards: int = 4, shard_size: int = 1 << 20) -> None:
    """A model of random bytes whose index and headers are those of safetensors."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text('{"model_type": "test"}')
    (directory / "README.md").write_text("# A model\n")
    weight_map = {}
    for number in range(1, shards + 1):
        name, tensor = f"model-{number:05}-of-{shards:05}.safetensors", f"layer.{number}"
        header = json.dumps({tensor: {"dtype": "U8", "shape": [shard_size], "data_offsets": [0, shard_size]}}).encode()
        data = random.Random(number).randbytes(shard_size)  # noqa: S311
        (directory / name).write_bytes(struct.pack("<Q", len(header)) + header + data)
        weight_map[tensor] = name
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


class BadHandler(Handler):
    """The lab's hub, which counts what it sends, and does what a test asks for."""

    def setup(self) -> None:
        super().setup()
        if self.server.down:
            self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def do_GET(self) -> None:  # noqa: N802
        self.server.asked += 1
        if self.server.answer:
            status, headers = self.server.answer
            self._json({"error": "told so"}, HTTPStatus(status), headers)
            return
        super().do_GET()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass

    def _send(self, path: Path, start: int, end: int) -> None:
        hub = self.server
        with path.open("rb") as stream:
            stream.seek(start)
            while start < end and not hub.down:
                block = bytearray(stream.read(min(hub.block, end - start)))
                bad = hub.flip.get(path.name)
                if bad is not None and start <= bad < start + len(block) and hub.flips:
                    hub.flips -= 1
                    block[bad - start] ^= 1
                with hub.lock:
                    hub.sent[path.name] = hub.sent.get(path.name, 0) + len(block)
                    hub.free_at = max(time.monotonic(), hub.free_at) + len(block) / hub.rate
                    pause = hub.free_at - time.monotonic()
                time.sleep(max(0.0, pause))
                self.wfile.write(block)
                start += len(block)
        if start < end:
            self.connection.shutdown(socket.SHUT_RDWR)


class BadHub(Hub):
    """A hub with a narrow uplink."""

    def __init__(self, models: Path, address: str = "127.0.0.1") -> None:
        super().__init__(address, 0, models)
        self.RequestHandlerClass = BadHandler
        self.lock, self.free_at, self.rate, self.block = threading.Lock(), 0.0, 1e9, 1 << 16
        self.sent: dict[str, int] = {}
        self.flip: dict[str, int] = {}
        self.flips, self.asked, self.down = 0, 0, False
        self.answer: tuple[int, dict[str, str]] | None = None

    @property
    def total(self) -> int:
        return sum(self.sent.values())

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_port}"


class StoreHandler(BaseHTTPRequestHandler):
    """S3 and ModelScope in so far as their clients ask: listings, and ranges of files of one directory."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.server.answer == "none":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if self.server.answer:
            code, headers = self.server.answer
            self.reply(code, b"", headers)
            return
        asked = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(asked.query)
        if asked.path == "/api/v1/models/test/model/repo/files":
            assert query["Revision"] == [self.server.commit]
            listing = {"Code": 200, "Success": True, "Data": {"Files": self.server.listing()}}
            self.reply(200, json.dumps(listing).encode())
        elif asked.path == "/api/v1/models/test/model/repo":
            self.file(query["FilePath"][0])
        elif asked.path.startswith("/bucket/some/model/"):
            self.file(urllib.parse.unquote(asked.path.removeprefix("/bucket/some/model/")))
        else:
            self.reply(404, b"")

    def file(self, name):
        path = self.server.folder / name
        if not path.is_file():
            self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>" if self.command == "GET" else b"")
            return
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        part = data[int(wanted[1]) :] if wanted else data
        head = {"Content-Range": f"bytes {wanted[1]}-{len(data) - 1}/{len(data)}"} if wanted else {}
        self.reply(206 if wanted else 200, part, head)

    def reply(self, code, body, headers=None):
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class Store(ThreadingHTTPServer):
    """One directory as the bucket `bucket/some/model`, and as the model `test/model` of ModelScope at one commit."""

    daemon_threads = True

    def __init__(self, folder: Path, commit: str, address: str = "127.0.0.1") -> None:
        self.folder, self.commit = folder, commit
        self.answer: tuple[int, dict[str, str]] | str | None = None
        super().__init__((address, 0), StoreHandler)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_port}"

    def listing(self) -> list[dict[str, object]]:
        return [
            {"Path": name, "Size": path.stat().st_size, "Sha256": sha256(path), "Type": "blob"}
            for name, path in files_in(self.folder).items()
        ]


def files_in(folder: Path) -> dict[str, Path]:
    """The files below a directory, by their names from there."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def write_sums(folder: Path) -> str:
    """Have a directory say what it holds, as sha256sum does; the revision that it is then."""
    lines = [f"{sha256(path)}  ./{name}\n" for name, path in files_in(folder).items()]
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(lines))
    return sha256(sums)[:40]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextlib.contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """Serve in a thread of its own."""
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
