"""Files whose content is known beforehand, and what the indexes of safetensors say of them."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[4] / "roles/weights/files"))
from provision_weights import files

DATA = bytes(range(256)) * 100
ENTRY = {"size": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}


def test_a_file_grows_is_left_and_goes_on(tmp_path):
    first = files.Growing(tmp_path / "a", ENTRY)
    first.write(memoryview(DATA[:1000]))
    first.close()
    assert (tmp_path / "a.part").read_bytes() == DATA[:1000]
    second = files.Growing(tmp_path / "a", ENTRY)
    assert second.size == 1000
    second.write(memoryview(DATA[1000:] + b"more than belongs there"))
    assert second.is_whole
    assert second.finish()
    assert (tmp_path / "a").read_bytes() == DATA
    assert files.is_sealed(tmp_path / "a", ENTRY)
    assert not (tmp_path / "a.part").exists()


def test_a_file_that_is_not_right_is_not_kept(tmp_path):
    (tmp_path / "a.part").write_bytes(b"x")
    growing = files.Growing(tmp_path / "a", ENTRY)
    growing.write(memoryview(DATA[1:]))
    assert not growing.finish()
    assert list(tmp_path.iterdir()) == []


def test_what_is_longer_than_it_may_be_begins_anew(tmp_path):
    (tmp_path / "a.part").write_bytes(DATA + b"x")
    assert files.Growing(tmp_path / "a", ENTRY).size == 0


def test_git_names_small_files(tmp_path):
    (tmp_path / "a").write_bytes(b"hello\n")
    entry = {"size": 6, "git": "ce013625030ba8dba906f756967f9e9ca394464a"}
    assert files.is_right(tmp_path / "a", entry)
    (tmp_path / "a").write_bytes(b"hellO\n")
    assert not files.is_right(tmp_path / "a", entry)


def test_only_the_wrong_ones_are_named(tmp_path):
    known = {}
    for number in range(20):
        (tmp_path / str(number)).write_bytes(DATA + bytes([number]))
        known[str(number)] = {"size": len(DATA) + 1, "sha256": hashlib.sha256(DATA + bytes([number])).hexdigest()}
    (tmp_path / "7").write_bytes(DATA + b"x")
    (tmp_path / "9").unlink()
    assert set(known) - files.which_are_right(tmp_path, known, known) == {"7", "9"}


@pytest.fixture
def shards(tmp_path):
    """Two shards with one tensor each, and their index."""
    for name, tensor in (("1.safetensors", "a"), ("2.safetensors", "b")):
        header = json.dumps({tensor: {"data_offsets": [0, 4]}, "__metadata__": {"x": "y"}}).encode()
        (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header + b"data")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def names(folder):
    return {path.name: {"size": path.stat().st_size} for path in folder.iterdir()}


def test_an_index_that_agrees(shards):
    assert files.objections(shards, names(shards)) == []


def swap_shards(folder):
    (folder / "1.safetensors").rename(folder / "3")
    (folder / "2.safetensors").rename(folder / "1.safetensors")
    (folder / "3").rename(folder / "2.safetensors")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: (folder / "2.safetensors").unlink(), "names 2.safetensors, which is not there"),
        (swap_shards, "has a in 1.safetensors, which does not hold it"),
        (lambda folder: (folder / "1.safetensors").open("ab").write(b"x"), "and its header says"),
    ],
)
def test_an_index_that_does_not(shards, change, expected):
    change(shards)
    assert expected in files.objections(shards, names(shards))[0]
