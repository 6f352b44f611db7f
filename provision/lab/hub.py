"""The lab's model hub: answers `hf download` and the HTTP calls of Hugging Face's hub, for models in a directory.

`python -m provision.lab.hub ADDRESS PORT MODELS_DIR`

A model lies in `MODELS_DIR/<organisation>/<name>/` and has one revision, `main`, whose commit is the hash of it all.
Any other name, at any revision, answers with the tiny model, so that an inventory that names hundreds of gigabytes can
be rehearsed. Weight files are told by SHA-256 and the others by git's SHA-1, as the real hub does.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from provision.lab.model import write_model

TINY = "provision-lab/tiny-deepseek-v3"
NAME = r"[\w.-]+/[\w.-]+"
BLOCK = 1 << 20  # bytes handed over at a time


@dataclass(frozen=True)
class HubFile:
    """One file of a model: `oid` is git's SHA-1 of it, `sha256` is set for the files that the hub stores as large."""

    path: Path
    size: int
    oid: str
    sha256: str | None

    @property
    def etag(self) -> str:
        """What the hub answers as ETag, and the client compares with what it got."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class HubModel:
    """A model's files by name, and its commit."""

    commit: str
    files: dict[str, HubFile]


def ensure_tiny_model(models: Path) -> None:
    """Make the tiny model, whole or not at all."""
    place = models / TINY
    if not place.is_dir():
        unfinished = place.with_name(f".{place.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        write_model(unfinished)
        unfinished.rename(place)


def read_model(directory: Path) -> HubModel:
    """Hash every file of a model directory; hidden ones are left out."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    visible = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(directory).parts)]
    files = {path.relative_to(directory).as_posix(): _read_file(path) for path in visible}
    told = json.dumps(sorted((name, file.etag) for name, file in files.items()))
    return HubModel(hashlib.sha1(told.encode()).hexdigest(), files)  # noqa: S324  commits are SHA-1


def _read_file(path: Path) -> HubFile:
    size = path.stat().st_size
    git, large = hashlib.sha1(b"blob %d\0" % size), hashlib.sha256()  # noqa: S324  what git calls the file
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            git.update(block)
            large.update(block)
    return HubFile(path, size, git.hexdigest(), large.hexdigest() if path.suffix == ".safetensors" else None)


class Hub(ThreadingHTTPServer):
    """Serves the models of one directory."""

    daemon_threads = True

    def __init__(self, address: str, port: int, models: Path) -> None:
        ensure_tiny_model(models)
        self.models = models
        self.read = cache(read_model)  # hashing once is enough: a model's directory is written before it is named
        super().__init__((address, port), Handler)

    def model(self, name: str, revision: str) -> HubModel | None:
        """A model at a revision, the tiny one at every revision of an unknown name; None for an unknown revision."""
        directory = self.models / name
        if directory.is_dir():
            model = self.read(directory)
            return model if revision in {"main", model.commit} else None
        tiny = self.read(self.models / TINY)
        return replace(tiny, commit=revision) if re.fullmatch("[0-9a-f]{40}", revision) else tiny


class Handler(BaseHTTPRequestHandler):
    """The calls that the hub's client makes to list, resolve and fetch a model."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        """Answer GET, and HEAD without a body."""
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if asked := re.fullmatch(rf"/api/models/({NAME})(?:/revision/([^/]+))?", path):
            self._revision(asked[1], asked[2])
        elif asked := re.fullmatch(rf"/api/models/({NAME})/(?:tree|paths-info)/([^/]+)", path):
            self._tree(asked[1], asked[2])
        elif asked := re.fullmatch(rf"/({NAME})/resolve/([^/]+)/(.+)", path):
            self._file(asked[1], asked[2], asked[3])
        else:
            self._json({"error": "Not found"}, HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET  # noqa: N815  named by http.server

    def do_POST(self) -> None:
        """Answer the calls that the client makes with a body, which changes nothing here."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  named by http.server
        """One line a request on standard error, without the client's address twice."""
        sys.stderr.write(f"{self.address_string()} {format % args} {self.headers.get('Range') or ''}\n")

    def _at(self, name: str, revision: str | None) -> HubModel | None:
        """The model at a revision; None, after the hub's own answer, where there is no such revision."""
        model = self.server.model(name, revision or "main")
        if model is None:
            code = {"X-Error-Code": "RevisionNotFound"}
            self._json({"error": f"Revision {revision} not found"}, HTTPStatus.NOT_FOUND, code)
        return model

    def _revision(self, name: str, revision: str | None) -> None:
        if model := self._at(name, revision):
            siblings = [{"rfilename": file} for file in model.files]
            facts = {"_id": model.commit[:24], "private": False, "tags": [], "siblings": siblings}
            self._json({"id": name, "modelId": name, "sha": model.commit, **facts})

    def _tree(self, name: str, revision: str) -> None:
        if model := self._at(name, revision):
            self._json([_entry(file, model.files[file]) for file in sorted(model.files)])

    def _file(self, name: str, revision: str, file: str) -> None:
        model = self._at(name, revision)
        if not model:
            return
        if file not in model.files:
            self._json({"error": "Entry not found"}, HTTPStatus.NOT_FOUND, {"X-Error-Code": "EntryNotFound"})
            return
        found = model.files[file]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = min(int(wanted[1]), found.size) if wanted else 0
        end = min(int(wanted[2]) + 1, found.size) if wanted and wanted[2] else found.size
        self.send_response(HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK)
        for header, value in _file_headers(model, found, start, end, partial=bool(wanted)):
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send(found.path, start, end)

    def _send(self, path: Path, start: int, end: int) -> None:
        """Hand over bytes [start, end) of a file, a block at a time."""
        with path.open("rb") as stream:
            stream.seek(start)
            while start < end and (block := stream.read(min(BLOCK, end - start))):
                self.wfile.write(block)
                start += len(block)

    def _json(self, body: object, status: HTTPStatus = HTTPStatus.OK, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for header, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _entry(name: str, file: HubFile) -> dict[str, Any]:
    """One file as the hub's tree tells it."""
    large = {"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 134}} if file.sha256 else {}
    return {"type": "file", "oid": file.oid, "size": file.size, "path": name, **large}


def _file_headers(model: HubModel, file: HubFile, start: int, end: int, *, partial: bool) -> Iterator[tuple[str, str]]:
    """What the client reads of a file's answer: commit, hash, whole size, and the range that follows."""
    yield "X-Repo-Commit", model.commit
    yield "ETag", f'"{file.etag}"'
    if file.sha256:
        yield "X-Linked-Etag", f'"{file.etag}"'
        yield "X-Linked-Size", str(file.size)
    yield "Accept-Ranges", "bytes"
    yield "Content-Length", str(end - start)
    if partial:
        yield "Content-Range", f"bytes {start}-{end - 1}/{file.size}"


def main() -> None:
    """Serve until ended by a signal."""
    address, port, models = sys.argv[1:]
    Hub(address, int(port), Path(models)).serve_forever()


if __name__ == "__main__":
    main()
