"""Where weights come from: each kind with its real client library, against a small double of its server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from stores import Store, running, sha256, write_sums

sys.path.append(str(Path(__file__).parents[4] / "roles/weights/files"))
from provision_weights import sources
from provision_weights.errors import LaterError, RefusedError
from provision_weights.spec import Spec

COMMIT = "c" * 40


def spec(kind, commit=COMMIT, **source):
    return Spec("test/model", commit, "/nowhere", source={"kind": kind, **source})


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "sub/a.safetensors").write_bytes(bytes(range(256)) * 40)
    write_sums(folder)
    return folder


@pytest.fixture
def store(model):
    server = Store(model, COMMIT)
    with running(server):
        yield server


@pytest.fixture(params=["modelscope", "directory", "s3"])
def source(request, store, model, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    places = {"modelscope": {"endpoint": store.url}, "directory": {"path": str(model)}}
    places["s3"] = {"endpoint": store.url, "bucket": "bucket/some/model"}
    commit = COMMIT if request.param == "modelscope" else sha256(model / "SHA256SUMS")[:40]
    return sources.open_source(spec(request.param, commit, **places[request.param]))


def test_files_and_their_bytes_from_anywhere(source, model):
    files = sources.wanted(source.files(), ["SHA256SUMS"])
    assert list(files) == ["config.json", "sub/a.safetensors"]
    for name, entry in files.items():
        data = (model / name).read_bytes()
        assert entry == {"size": len(data), "sha256": sha256(model / name)}
        for offset in (0, 1, len(data) - 1):
            assert b"".join(bytes(block) for block in source.read(name, offset)) == data[offset:]


def test_a_file_that_is_not_there_is_refused(source):
    with pytest.raises(RefusedError):
        list(source.read("other", 0))


@pytest.mark.parametrize("source", ["modelscope", "s3"], indirect=True)
def test_refusals_and_waits(source, store):
    store.answer = (403, {})
    with pytest.raises(RefusedError, match="403"):
        list(source.read("config.json", 0))
    store.answer = (429, {"Retry-After": "7"})
    with pytest.raises(LaterError, match="throttles"):
        list(source.read("config.json", 0))
    store.answer = "none"
    with pytest.raises(LaterError, match="does not answer this host"):
        list(source.read("config.json", 0))


def test_a_place_of_plain_files_must_say_what_they_are(model):
    (model / "SHA256SUMS").unlink()
    with pytest.raises(RefusedError, match="sha256sum"):
        sources.open_source(spec("directory", path=str(model))).files()
    (model / "SHA256SUMS").write_text("nonsense\n")
    commit = sha256(model / "SHA256SUMS")[:40]
    with pytest.raises(RefusedError, match="would not write"):
        sources.open_source(spec("directory", commit, path=str(model))).files()
    with pytest.raises(RefusedError, match=commit):
        sources.open_source(spec("directory", path=str(model))).files()


def test_how_long_to_wait():
    assert sources.retry_after("12") == 12
    assert sources.retry_after("soon") == 30
    assert sources.retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 1.0


def test_a_server_without_ranges_is_read_from_its_begin():
    assert b"".join(sources.from_offset([b"abc", b"def", b"gh"], 4)) == b"efgh"


def test_what_is_hidden_or_not_wanted_is_left_out():
    names = [".gitattributes", "a/.cache", "consolidated.safetensors", "b.safetensors", "a.json"]
    assert list(sources.wanted({name: {} for name in names}, ["consolidated*"])) == ["a.json", "b.safetensors"]
