"""The lab's hub: what the hub's client asks, and what it must be told."""

import hashlib
import json
import threading
import urllib.error
import urllib.request

import pytest

from provision.lab.hub import TINY, Hub, read_model


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    server = Hub("127.0.0.1", 0, tmp_path_factory.mktemp("hub"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(hub):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(path, method="GET", **headers):
        url = f"http://127.0.0.1:{hub.server_port}{path}"
        return opener.open(urllib.request.Request(url, method=method, headers=headers), timeout=10)

    return call


def test_a_branch_means_a_commit_whose_tree_hashes_right(hub, ask):
    commit = json.load(ask(f"/api/models/{TINY}/revision/main"))["sha"]
    entries = json.load(ask(f"/api/models/{TINY}/tree/{commit}?recursive=true&expand=false"))
    assert {entry["path"] for entry in entries} >= {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    for entry in entries:
        data = (hub.models / TINY / entry["path"]).read_bytes()
        assert entry["size"] == len(data)
        assert entry["oid"] == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324  git's
        assert ("lfs" in entry) == entry["path"].endswith(".safetensors")
        assert entry.get("lfs", {}).get("oid", hashlib.sha256(data).hexdigest()) == hashlib.sha256(data).hexdigest()


def test_a_file_comes_whole_and_in_parts(hub, ask):
    shard = next((hub.models / TINY).glob("*.safetensors"))
    data, path = shard.read_bytes(), f"/{TINY}/resolve/main/{shard.name}"
    whole = ask(path)
    assert whole.read() == data
    assert (
        whole.headers["ETag"].strip('"')
        == whole.headers["X-Linked-Etag"].strip('"')
        == hashlib.sha256(data).hexdigest()
    )
    part = ask(path, Range="bytes=1000-1999")
    assert (part.status, part.read()) == (206, data[1000:2000])
    assert part.headers["Content-Range"] == f"bytes 1000-1999/{len(data)}"
    assert ask(path, Range=f"bytes={len(data) - 5}-").read() == data[-5:]
    head = ask(path, method="HEAD")
    assert (head.read(), head.headers["Content-Length"]) == (b"", str(len(data)))


def test_any_other_name_at_any_commit_is_the_tiny_model(ask):
    commit = "a" * 40
    answer = json.load(ask(f"/api/models/deepseek-ai/DeepSeek-R1-0528/revision/{commit}"))
    assert answer["sha"] == commit
    assert ask(f"/deepseek-ai/DeepSeek-R1-0528/resolve/{commit}/config.json").headers["X-Repo-Commit"] == commit


@pytest.mark.parametrize("path", [f"/api/models/{TINY}/revision/nope", f"/{TINY}/resolve/main/nope.json", "/nope"])
def test_what_is_not_there_is_404(ask, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        ask(path)


def test_hidden_files_are_no_part_of_a_model(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text("")
    (tmp_path / "config.json").write_text("{}")
    assert list(read_model(tmp_path).files) == ["config.json"]
