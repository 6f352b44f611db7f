"""What lies on a host: switching while a reader reads, removing what nobody needs, verifying all."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = Path(__file__).parents[4] / "roles/weights/files"
sys.path.append(str(FILES))
from provision_weights import keep  # noqa: E402
from provision_weights.errors import RefusedError  # noqa: E402
from provision_weights.files import seal  # noqa: E402
from provision_weights.spec import Spec  # noqa: E402

COMMITS = [letter * 40 for letter in "abcd"]


def spec_of(folder, commit):
    return Spec("test/model", commit, str(folder), state=str(folder / "state"))


@pytest.fixture
def four(tmp_path):
    """Four commits of one file each, all whole."""
    base = tmp_path / "test--model"
    for commit in COMMITS:
        (base / commit).mkdir(parents=True)
        path, data = base / commit / "model.safetensors", commit.encode() * 1000
        path.write_bytes(data)
        seal(path)
        files = {path.name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
        (base / f"{commit}.json").write_text(json.dumps({"files": files}))
    return tmp_path


def test_switch_and_back_while_a_reader_reads(four):
    keep.switch(spec_of(four, COMMITS[0]))
    link = four / "test--model/current"
    with (link / "model.safetensors").open("rb") as reader:
        begin = reader.read(100)
        assert keep.switch(spec_of(four, COMMITS[1])) == {"before": COMMITS[0], "current": COMMITS[1]}
        assert (link / "model.safetensors").read_bytes().startswith(b"bbb")
        assert begin + reader.read() == COMMITS[0].encode() * 1000
    keep.switch(spec_of(four, COMMITS[0]))
    assert (os.readlink(link), os.readlink(four / "test--model/previous")) == (COMMITS[0], COMMITS[1])


def test_what_is_not_whole_is_not_switched_to(four):
    keep.switch(spec_of(four, COMMITS[0]))
    (four / "test--model" / COMMITS[1] / "model.safetensors").write_bytes(b"x")
    with pytest.raises(RefusedError, match=r"model\.safetensors is not verified"):
        keep.switch(spec_of(four, COMMITS[1]))
    with pytest.raises(RefusedError, match="not fetched"):
        keep.switch(spec_of(four, "e" * 40))
    assert os.readlink(four / "test--model/current") == COMMITS[0]


def test_only_what_nobody_needs_is_removed_and_shown_before(four):
    keep.switch(spec_of(four, COMMITS[0]))
    keep.switch(spec_of(four, COMMITS[1]))
    with (four / "test--model" / COMMITS[2] / "model.safetensors").open("rb"):
        shown = keep.collect(spec_of(four, COMMITS[1]), remove=False)
        assert shown["commits"] == {COMMITS[3]: 40000}
        assert (four / "test--model" / COMMITS[3]).is_dir()
        keep.collect(spec_of(four, COMMITS[1]), remove=True)
    left = {path.name for path in (four / "test--model").iterdir()}
    assert left == {"current", "previous", *COMMITS[:3], *(f"{commit}.json" for commit in COMMITS[:3])}


def test_status_tells_what_is_whole(four):
    keep.switch(spec_of(four, COMMITS[0]))
    (four / "test--model" / COMMITS[1] / "model.safetensors").touch()
    told = keep.status(spec_of(four, COMMITS[0]))
    assert (told["current"], told["previous"]) == (COMMITS[0], "")
    assert [each["whole"] for each in told["commits"]] == [True, False, True, True]


def run(four, command, commit):
    asked = json.dumps({"repo": "test/model", "directory": str(four), "commit": commit})
    words = [sys.executable, "-m", "provision_weights", "--spec", str(four / "none"), "--asked", asked, command]
    env = {**os.environ, "PYTHONPATH": str(FILES)}
    return subprocess.run(words, env=env, capture_output=True, text=True, check=False)


def test_verify_reads_all_and_names_what_is_wrong(four):
    good = run(four, "verify", COMMITS[0])
    assert (good.returncode, json.loads(good.stdout)["wrong"]) == (0, [])
    path = four / "test--model" / COMMITS[0] / "model.safetensors"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    seal(path)  # as rot on the disk would be: no time tells
    bad = run(four, "verify", COMMITS[0])
    assert (bad.returncode, json.loads(bad.stdout)["wrong"]) == (1, ["model.safetensors"])
    assert keep.commit_of(four / "test--model", COMMITS[0])["bad"] == ["model.safetensors"]


def test_a_refusal_is_one_sentence(four):
    refused = run(four, "switch", "e" * 40)
    assert refused.returncode == 3
    assert refused.stderr.strip().endswith("nothing was switched.")
    assert run(four, "warm", COMMITS[0]).returncode == 0
