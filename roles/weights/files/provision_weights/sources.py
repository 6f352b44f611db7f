"""Where weights come from: which files there are, and a file's bytes from an offset on.

Four kinds behind one interface, and the client library of each does the talking: Hugging Face's hub or a mirror of it,
ModelScope, a directory (a local disk or NFS), and a bucket with S3's API.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import fnmatch
import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from provision_weights.errors import LaterError, RefusedError
from provision_weights.files import BLOCK
from provision_weights.spec import Spec

CONNECT_S, SILENCE_S = 10, 15
SUMS = "SHA256SUMS"
NO_MODEL = (
    "there is no such model, or it is not for this token. Check weights_repo; for a gated or private model, accept its "
    "terms and set weights_token."
)
NO_REVISION = "there is no such revision (any more). Check weights_revision; the model's page lists its commits."


class Source(Protocol):
    """A place that has a model."""

    name: str

    def files(self) -> dict[str, dict[str, Any]]:
        """Size and hash of every file, by name."""

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        """A file's bytes from an offset on."""


def open_source(spec: Spec) -> Source:
    """The source that a spec names."""
    kinds = {"huggingface": HuggingFace, "modelscope": ModelScope, "directory": Directory, "s3": Bucket}
    return kinds[spec.source["kind"]](spec)


def wanted(files: dict[str, dict[str, Any]], exclude: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Without what is hidden or not wanted, in the order in which all hosts fetch: what is small comes first."""
    patterns = list(exclude)
    for name in files:
        if name.startswith("/") or ".." in name.split("/"):
            raise RefusedError(f"{name!r} is no name of a file below the model: names are relative to it.")
    names = [name for name in files if not is_excluded(name, patterns)]
    return {name: files[name] for name in sorted(names, key=lambda name: (name.endswith(".safetensors"), name))}


def is_excluded(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file is not wanted."""
    hidden = name.startswith(".") or "/." in name
    return hidden or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def judge_status(name: str, code: int, headers: Any, what: str = "") -> None:
    """Raise what follows from an HTTP status: wait, or give up; nothing for one that is fine."""
    if code in (401, 403, 404):
        kind = headers.get("X-Error-Code") or ""
        gone = kind == "RevisionNotFound" or (code == 404 and kind != "RepoNotFound")
        raise RefusedError(
            f"{name} answers {code}{f' for {what}' if what else ''}: {NO_REVISION if gone else NO_MODEL}"
        )
    if code == 429:
        seconds = retry_after(headers.get("Retry-After"))
        raise LaterError(f"{name} throttles (429) and asks to wait {seconds:.0f} s", seconds)
    if code >= 500:
        raise LaterError(f"{name} answers {code}, an error of its own", retry_after(headers.get("Retry-After"), 5))
    if code >= 400:
        raise RefusedError(
            f"{name} answers {code}{f' for {what}' if what else ''}, which cannot be mended by asking again."
        )


def retry_after(said: str | None, default: float = 30) -> float:
    """How long a server asks to wait: seconds, or a date."""
    if said and said.strip().isdigit():
        return float(said)
    with contextlib.suppress(TypeError, ValueError):
        return max(1.0, email.utils.parsedate_to_datetime(str(said)).timestamp() - time.time())
    return default


@contextlib.contextmanager
def patiently(name: str, errors: tuple[type[BaseException], ...]) -> Iterator[None]:
    """Turn a client's trouble with the connection into a reason to ask again."""
    try:
        yield
    except errors as error:
        raise LaterError(
            f"{name} does not answer this host ({type(error).__name__}: {first_line(error)})", 2
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or ["no word"])[0]


class HuggingFace:
    """Hugging Face's hub, or what has its API: huggingface_hub knows its addresses, headers, tokens and errors."""

    def __init__(self, spec: Spec) -> None:
        import huggingface_hub  # noqa: PLC0415 - only where it is used
        from huggingface_hub.utils import build_hf_headers, get_session  # noqa: PLC0415

        self.hub, self.spec = huggingface_hub, spec
        self.endpoint = spec.source.get("endpoint") or None
        self.name = self.endpoint or "https://huggingface.co"
        self.token = os.environ.get("WEIGHTS_TOKEN") or False
        self.headers = build_hf_headers(token=self.token, library_name="provision")
        self.session = get_session()
        self.trouble = _network_errors(self.session)

    def files(self) -> dict[str, dict[str, Any]]:
        api = self.hub.HfApi(endpoint=self.endpoint, token=self.token)
        with patiently(self.name, self.trouble):
            try:
                entries = list(api.list_repo_tree(self.spec.repo, recursive=True, revision=self.spec.commit))
            except self.hub.errors.HfHubHTTPError as error:
                judge_status(self.name, error.response.status_code, error.response.headers, self.spec.repo)
                raise
        found: dict[str, dict[str, Any]] = {}
        for entry in entries:
            if hasattr(entry, "size"):
                large = getattr(entry, "lfs", None)
                known = {"sha256": large.sha256} if large else {"git": entry.blob_id}
                found[entry.path] = {"size": entry.size, **known}
        return found

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        url = self.hub.hf_hub_url(self.spec.repo, path, revision=self.spec.commit, endpoint=self.endpoint)
        headers = {**self.headers, "Range": f"bytes={offset}-", "Accept-Encoding": "identity"}
        with (
            patiently(self.name, self.trouble),
            self.session.stream("GET", url, headers=headers, timeout=SILENCE_S, follow_redirects=True) as answer,
        ):
            judge_status(self.name, answer.status_code, answer.headers, path)
            yield from from_offset(answer.iter_bytes(BLOCK >> 3), offset if answer.status_code == 200 else 0)


def _network_errors(session: Any) -> tuple[type[BaseException], ...]:
    """The errors of the client's own library that are about the connection."""
    import importlib  # noqa: PLC0415

    library = importlib.import_module(type(session).__module__.partition(".")[0])
    return (library.TransportError, ConnectionError, TimeoutError)


def from_offset(blocks: Iterable[bytes], skip: int) -> Iterator[bytes]:
    """Blocks without the first bytes, for a server that sends all of a file whatever is asked for."""
    for block in blocks:
        if skip < len(block):
            yield block[skip:]
        skip = max(0, skip - len(block))


class ModelScope:
    """ModelScope, by its own client."""

    def __init__(self, spec: Spec) -> None:
        import modelscope_hub  # noqa: PLC0415
        import requests  # noqa: PLC0415 - modelscope_hub's own

        self.spec, self.errors = spec, modelscope_hub.errors
        self.name = spec.source.get("endpoint") or "https://modelscope.cn"
        token = os.environ.get("WEIGHTS_TOKEN") or None
        self.api = modelscope_hub.HubApi(endpoint=spec.source.get("endpoint") or None, token=token)
        self.trouble = (self.errors.NetworkError, self.errors.ServerError, requests.RequestException)

    def files(self) -> dict[str, dict[str, Any]]:
        with patiently(self.name, self.trouble), self._judged(self.spec.repo):
            listed = self.api.list_repo_files(self.spec.repo, "model", revision=self.spec.commit)
        nameless = [each.path for each in listed if not each.is_dir and not each.sha256]
        if nameless:
            raise RefusedError(f"{self.name} tells no SHA-256 of {nameless[0]}, so it cannot be verified.")
        return {each.path: {"size": each.size, "sha256": each.sha256} for each in listed if not each.is_dir}

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        asked = {"Range": f"bytes={offset}-", "Accept-Encoding": "identity"}
        with patiently(self.name, self.trouble), self._judged(path):
            answer = self.api.legacy.download_stream(self.spec.repo, "model", path, self.spec.commit, headers=asked)
            with contextlib.closing(answer):
                yield from from_offset(answer.iter_content(BLOCK >> 3), offset if answer.status_code == 200 else 0)

    @contextlib.contextmanager
    def _judged(self, what: str) -> Iterator[None]:
        try:
            yield
        except self.errors.RateLimitError as error:
            seconds = float(getattr(error, "retry_after", None) or 30)
            raise LaterError(f"{self.name} throttles (429) and asks to wait {seconds:.0f} s", seconds) from error
        except self.errors.ServerError:
            raise
        except self.errors.APIError as error:
            judge_status(self.name, int(getattr(error, "status_code", 0) or 400), {}, what)
            raise


class Listed:
    """A place of plain files, which says what they are in a SHA256SUMS that `sha256sum` made."""

    name, commit = "", ""

    def files(self) -> dict[str, dict[str, Any]]:
        """What SHA256SUMS lists. Its own hash is the commit: it lists what was asked for, or is refused."""
        text = b"".join(bytes(block) for block in self.read(SUMS, 0))
        commit = hashlib.sha256(text).hexdigest()[:40]
        if self.commit != commit:
            raise RefusedError(
                f"{self.name} is no longer at {self.commit}: its {SUMS} says {commit}, the first 40 digits of its own "
                "SHA-256. Set weights_revision to that if it is what you want."
            )
        found = {}
        for line in text.decode("utf-8").splitlines():
            said = re.fullmatch(r"([0-9a-f]{64})[ ][ *](?:\./)?(.+)", line)
            if not said:
                raise RefusedError(f"{self.name}/{SUMS} has a line that sha256sum would not write: {line[:80]!r}.")
            if said[2] != SUMS:  # which lists itself where it was written by find
                found[said[2]] = {"size": self.size(said[2]), "sha256": said[1]}
        return found

    def size(self, path: str) -> int:
        """How many bytes a file has."""
        raise NotImplementedError

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        """A file's bytes from an offset on."""
        raise NotImplementedError

    def lacks(self, path: str) -> RefusedError:
        """What to say of a file that is not there."""
        make = (
            ""
            if path != SUMS
            else " It names every file and its hash: make it there with  find -type f | xargs sha256sum"
        )
        return RefusedError(f"{self.name} has no {path}.{make}")


class Directory(Listed):
    """A directory of the host: a local disk, or NFS."""

    def __init__(self, spec: Spec) -> None:
        self.path = Path(spec.source["path"])
        self.name, self.commit = str(self.path), spec.commit

    def size(self, path: str) -> int:
        with self._judged(path):
            return (self.path / path).stat().st_size
        raise AssertionError("unreachable")

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        with self._judged(path), (self.path / path).open("rb", buffering=0) as stream:
            stream.seek(offset)
            while block := stream.read(BLOCK):
                yield block

    @contextlib.contextmanager
    def _judged(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise self.lacks(path) from None
        except OSError as error:
            if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN):
                raise LaterError(f"{self.name} cannot be read ({error.strerror})", 5) from error
            raise RefusedError(f"{self.name}/{path} cannot be read: {error.strerror}.") from error


class Bucket(Listed):
    """A bucket with S3's API, by boto3; its keys come from the environment or the host's own role."""

    def __init__(self, spec: Spec) -> None:
        import boto3  # noqa: PLC0415
        import botocore.config  # noqa: PLC0415
        import botocore.exceptions  # noqa: PLC0415

        bucket, _, prefix = spec.source["bucket"].partition("/")
        self.bucket, self.prefix = bucket, f"{prefix.strip('/')}/" if prefix else ""
        self.name, self.commit = f"s3://{bucket}/{self.prefix}".rstrip("/"), spec.commit
        config = botocore.config.Config(
            connect_timeout=CONNECT_S,
            read_timeout=SILENCE_S,
            max_pool_connections=spec.streams + 2,
            retries={"max_attempts": 2},
        )
        self.client = boto3.client("s3", endpoint_url=spec.source.get("endpoint") or None, config=config)
        self.exceptions = botocore.exceptions
        self.trouble = (
            botocore.exceptions.HTTPClientError,
            botocore.exceptions.ConnectionError,
            botocore.exceptions.IncompleteReadError,
            ConnectionError,
            TimeoutError,
        )

    def size(self, path: str) -> int:
        with patiently(self.name, self.trouble), self._judged(path):
            return int(self.client.head_object(Bucket=self.bucket, Key=self.prefix + path)["ContentLength"])
        raise AssertionError("unreachable")

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        more = {"Range": f"bytes={offset}-"} if offset else {}
        with patiently(self.name, self.trouble), self._judged(path):
            answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path, **more)
            yield from answer["Body"].iter_chunks(BLOCK >> 3)

    @contextlib.contextmanager
    def _judged(self, path: str) -> Iterator[None]:
        try:
            yield
        except self.exceptions.ClientError as error:
            answer = error.response.get("ResponseMetadata", {})
            code = int(answer.get("HTTPStatusCode") or 400)
            if code == 404:
                raise self.lacks(path) from None
            if code in (401, 403):
                raise RefusedError(
                    f"{self.name} answers {code} for {path}: weights_s3_access_key and weights_s3_secret_key must be "
                    "those of somebody who may read there."
                ) from None
            if code == 503:  # SlowDown: how S3 throttles
                raise LaterError(f"{self.name} throttles (503)", 5) from error
            judge_status(self.name, code, answer.get("HTTPHeaders", {}), path)
            raise
        except (self.exceptions.NoCredentialsError, self.exceptions.PartialCredentialsError) as error:
            raise RefusedError(
                f"{self.name} asks for credentials. Set weights_s3_access_key and weights_s3_secret_key."
            ) from error
