"""Weights: found in place, verified, fetched file by file, against the lab's own hub."""

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from ansible.module_utils import provision_hub, provision_weights
from ansible.module_utils.provision_host import HostError
from ansible.module_utils.provision_hub import list_files
from ansible.module_utils.provision_sealed import is_sealed, seal

from provision.lab.hub import TINY, Hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    server = Hub("127.0.0.1", 0, tmp_path_factory.mktemp("hub"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class FakeUnit:
    """Copies from the hub's directory what the program would fetch."""

    def __init__(self, weights, hub, downloads):
        self.weights, self.hub, self.downloads, self.at_work = weights, hub, downloads, False

    def is_at_work(self, commit):
        return self.at_work

    def start(self, commit, manifest):
        self.at_work = True
        self.weights.partial.mkdir(parents=True, exist_ok=True)

    def wait(self, commit):
        files = self.weights.files or list_files(self.weights.params["endpoint"], TINY, commit, "")
        folders = (self.weights.place, self.weights.partial)
        missing = [name for name in files if not any(is_sealed(folder / name, files[name]) for folder in folders)]
        self.downloads.append(sorted(missing))
        for name in missing:
            shutil.copyfile(self.hub.models / TINY / name, self.weights.partial / name)
            seal(self.weights.partial / name)
        (self.weights.partial / ".manifest.json").write_text(json.dumps({"exclude": [], "files": files}))


@pytest.fixture
def make(hub, tmp_path, monkeypatch):
    """A `Weights` whose downloads copy from the hub's directory; `.downloads` lists the names asked for."""
    monkeypatch.setattr(provision_weights, "MARGIN", 0)
    monkeypatch.setattr(provision_weights.shutil, "chown", lambda *_: None)
    monkeypatch.setattr(provision_weights.os, "sync", lambda: None)
    downloads, warnings = [], []

    def build(**changes):
        params = {
            "repo": TINY,
            "revision": "main",
            "directory": str(tmp_path),
            "source": "huggingface",
            "endpoint": f"http://127.0.0.1:{hub.server_port}",
            "token": "",
            "exclude": [],
            "user": "vllm",
            "chain": [],
            "uplink": True,
            "wait": True,
            "full": False,
            "unit": "u",
            **changes,
        }
        weights = provision_weights.Weights(params, warnings.append)
        weights.unit = FakeUnit(weights, hub, downloads)
        weights.downloads, weights.warnings = downloads, warnings
        return weights

    return build


def converge(weights, check=False):
    """The sentences of one run."""
    actions = []
    for change in weights.plan(check):
        if not check:
            change.act()
        actions.append(change.action)
    return actions


def test_download_then_nothing(make):
    predicted, weights = converge(make(), check=True), make()
    assert converge(weights) == predicted
    assert predicted == [
        f"Downloaded {TINY} at {weights.commit[:12]}: 7 files, 4.2 MB.",
        f"Switched {weights.base}/current to {weights.commit[:12]}.",
    ]
    assert (weights.base / "current").resolve() == weights.place
    assert weights.facts()["present"] is True
    assert not weights.partial.exists()
    again = make()
    assert converge(again) == []
    assert len(again.downloads) == 1


@pytest.mark.parametrize("check", [True, False])
def test_damage_is_fetched_again_alone(make, check):
    first = make()
    converge(first)
    shard = next(first.place.glob("*.safetensors"))
    with shard.open("r+b") as file:
        file.seek(9000)
        file.write(b"x")
    (first.place / "config.json").unlink()
    (first.place / "tokenizer.json").touch()
    weights = make()
    assert converge(weights, check) == [
        "Verified again tokenizer.json.",
        f"Fetched again config.json, {shard.name} of {TINY} at {weights.commit[:12]}, 3.1 MB: missing or damaged.",
    ]
    assert weights.downloads[1:] == ([] if check else [["config.json", shard.name]])
    assert (converge(make(), check=True) == []) != check


@pytest.mark.parametrize("check", [True, False])
def test_rot_that_no_time_tells_is_found_by_reading_all(make, check):
    first = make()
    converge(first)
    shard = next(first.place.glob("*.safetensors"))
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    seal(shard)
    assert converge(make(), check) == []
    weights = make(full=True)
    (sentence,) = converge(weights, check)
    assert sentence.startswith(f"Fetched again {shard.name} of {TINY} at {weights.commit[:12]}, ")
    assert weights.downloads[1:] == ([] if check else [[shard.name]])
    assert (converge(make(full=True), check=True) == []) != check


def test_models_that_were_copied_here_are_taken_over(make, hub):
    weights = make()
    weights.look_up()
    shutil.copytree(hub.models / TINY, weights.place)
    actions = converge(weights)
    assert actions[0].startswith("Verified again config.json")
    assert actions[1].startswith("Wrote ")
    assert weights.downloads == []


def test_a_unit_that_ended_without_a_file_is_told(make):
    weights = make()
    weights.unit.wait = lambda commit: None
    with pytest.raises(HostError, match=r"has ended, and config\.json"):
        converge(weights)
    assert not weights.place.exists()


def test_the_unit_is_started_early_and_once(make):
    predicted, early = converge(make(wait=False), check=True), make(wait=False)
    assert converge(early) == predicted == [f"Began to fetch {TINY} at {early.commit[:12]}: 7 files, 4.2 MB."]
    assert not early.place.exists()
    assert converge(early) == []
    begun = early.facts()  # which a receipt keeps, and must find again when all is there
    converge(make())
    again = make(wait=False)
    assert converge(again) == []
    assert again.facts() == begun


def test_switch_and_back_keep_a_reader_and_the_previous(make, hub):
    first = make()
    converge(first)
    link = first.base / "current"
    reader = (link / "config.json").open("rb")
    other = make(revision="b" * 40, repo="else/where")
    other.base = first.base  # the hub has the tiny model at every commit of an unknown name
    assert converge(other)[-1] == f"Switched {link} to {'b' * 12}."
    assert (os.readlink(link), os.readlink(first.base / "previous")) == ("b" * 40, first.commit)
    assert reader.read() == (first.place / "config.json").read_bytes()
    reader.close()
    assert converge(make()) == [f"Switched {link} to {first.commit[:12]}."]
    assert os.readlink(first.base / "previous") == "b" * 40


def test_a_host_without_an_uplink_leaves_the_list_to_who_fetches(make, hub):
    known = make()
    known.look_up()
    weights = make(revision=known.commit, uplink=False, chain=["10.0.0.1", "10.0.0.2"])
    at = f"{TINY} at {known.commit[:12]}"
    assert converge(make(revision=known.commit, uplink=False, chain=["a", "b"]), check=True)[0] == f"Downloaded {at}."
    assert converge(weights) == [f"Downloaded {at}.", f"Switched {weights.base}/current to {known.commit[:12]}."]
    assert "weights_uplink" in weights.warnings[0]
    assert weights.facts()["present"] is True
    assert converge(make(revision=known.commit)) == []


def test_only_a_hub_has_branches(make):
    with pytest.raises(HostError, match="40 hex digits"):
        converge(make(source="s3"))


def test_an_index_that_names_what_is_left_out_stops_before_anything_is_in_place(make):
    with pytest.raises(HostError, match=r"model-00002-of-00002\.safetensors, which commit"):
        converge(make(exclude=["model-00002*"]))


def test_too_little_room_is_told_in_check_mode_too(make, monkeypatch):
    monkeypatch.setattr(provision_weights, "MARGIN", 1 << 60)
    with pytest.raises(HostError, match=r"GB free, and .* needs .* more there"):
        converge(make(), check=True)


def test_a_branch_stays_what_it_was_while_the_hub_is_silent(make, monkeypatch):
    converge(make())
    monkeypatch.setattr(provision_hub.time, "sleep", lambda seconds: None)
    silent = make(endpoint="http://127.0.0.1:9")
    assert converge(silent) == []
    assert "Keeping commit" in silent.warnings[0]


def test_a_pinned_commit_asks_the_hub_nothing(make):
    first = make()
    converge(first)
    assert converge(make(revision=first.commit, endpoint="http://127.0.0.1:9")) == []


def test_a_silent_hub_on_a_bare_host(make, monkeypatch):
    monkeypatch.setattr(provision_hub.time, "sleep", lambda seconds: None)
    assert converge(make(endpoint="http://127.0.0.1:9"), check=True) == [f"Downloaded {TINY} at main."]
    with pytest.raises(HostError, match="does not answer this host"):
        converge(make(endpoint="http://127.0.0.1:9"))


def test_a_damaged_manifest_is_made_anew(make):
    weights = make()
    converge(weights)
    with open(weights.manifest, "w") as file:
        file.write("{")
    assert converge(make()) == [f"Rewrote {weights.manifest}."]


def test_a_manifest_that_somebody_wrote_is_not_believed(make):
    weights = make()
    converge(weights)
    text = Path(weights.manifest).read_text()
    with open(weights.manifest, "w") as file:
        file.write(text.replace("config.json", "other.json"))
    assert converge(make(), check=True) == converge(make()) == [f"Rewrote {weights.manifest}."]
    with open(weights.manifest, "w") as file:
        file.write(text)
    assert converge(make()) == [f"Verified again {weights.manifest}."]
    assert converge(make()) == []


def test_what_readers_cannot_read_is_opened(make):
    weights = make()
    converge(weights)
    weights.place.chmod(0o700)
    (weights.place / "config.json").chmod(0o600)
    name = f"{weights.commit}, config.json"
    assert converge(make(), check=True) == converge(make()) == [f"Opened {name} to readers."]
    assert converge(make()) == []


def test_a_strict_umask_closes_nothing(make):
    before = os.umask(0o077)
    try:
        converge(make())
        assert converge(make()) == []
    finally:
        os.umask(before)


def test_the_token_is_not_kept(role_module, fake_module, monkeypatch):
    module, forgotten = role_module("weights", "model_weights"), []
    params = {"directory": "/m", "repo": "a/b", "unit": "u", "token": "hf_secret"}
    monkeypatch.setattr(module, "AnsibleModule", lambda **_: fake_module(**params))
    monkeypatch.setattr(fake_module, "warn", None, raising=False)
    monkeypatch.setattr(module, "converge", lambda *_, forget: forgotten.extend(forget))
    module.main()
    assert forgotten == ["token", "s3_access_key", "s3_secret_key", "full"]


def test_pages_and_refusals(monkeypatch):
    pages = {
        "https://hub/api/models/a/b/tree/c?recursive=true&expand=false": (
            [{"type": "file", "path": "x", "size": 1, "oid": "1"}, {"type": "directory", "path": "d"}],
            "https://hub/next",
        ),
        "https://hub/next": ([{"type": "file", "path": "y", "size": 2, "oid": "2", "lfs": {"oid": "3"}}], ""),
    }
    monkeypatch.setattr(
        provision_hub, "ask", lambda endpoint, path, token: pages[path if "://" in path else endpoint + path]
    )
    files = provision_hub.list_files("https://hub", "a/b", "c", "")
    assert files == {"x": {"size": 1, "git": "1"}, "y": {"size": 2, "sha256": "3"}}
    assert "weights_token" in provision_hub._refused("u", 403)
    assert "weights_revision" in provision_hub._refused("u", 404)


def test_sizes_for_people():
    assert [provision_weights.human(size) for size in (7, 4200, 4.2e6, 688_586_727_753)] == [
        "7 bytes",
        "4.2 kB",
        "4.2 MB",
        "688.6 GB",
    ]
