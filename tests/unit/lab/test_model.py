"""The tiny model: equal for equal seeds, whole, and readable by what serving uses."""

import json
import struct

import pytest

from provision.lab.model import CONFIG, SPECIAL, WORDS, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    write_model(directory)
    return directory


def read(path):
    return json.loads(path.read_text())


def header(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), len(data) - 8 - size


def test_equal_seeds_make_equal_files_and_others_do_not(model, tmp_path):
    write_model(tmp_path / "same")
    write_model(tmp_path / "other", seed=1)
    for path in model.iterdir():
        assert path.read_bytes() == (tmp_path / "same" / path.name).read_bytes()
        assert (path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()) == (path.suffix == ".json")


def test_the_index_names_every_tensor_in_its_shard_once(model):
    index = read(model / "model.safetensors.index.json")
    total, seen = 0, {}
    for shard in sorted(model.glob("*.safetensors")):
        tensors, size = header(shard)
        tensors.pop("__metadata__")
        assert max(tensor["data_offsets"][1] for tensor in tensors.values()) == size
        seen.update(dict.fromkeys(tensors, shard.name))
        total += size
    assert seen == index["weight_map"]
    assert total == index["metadata"]["total_size"]
    assert len(set(seen.values())) == 2


def test_shards_as_many_as_asked_for(tmp_path):
    write_model(tmp_path, shards=3)
    assert len(list(tmp_path.glob("model-*-of-00003.safetensors"))) == 3


def test_norms_are_one_and_weights_are_small(model):
    shard = model / "model-00001-of-00002.safetensors"
    tensors, size = header(shard)
    data = shard.read_bytes()[-size:]

    def values(name):
        begin, end = tensors[name]["data_offsets"]
        return [struct.unpack("<f", b"\0\0" + data[at : at + 2])[0] for at in range(begin, end, 2)]

    assert set(values("model.layers.0.input_layernorm.weight")) == {1.0}
    weights = values("model.layers.0.self_attn.q_a_proj.weight")
    assert max(map(abs, weights)) < 0.1
    assert abs(sum(weights) / len(weights)) < 0.001


def test_the_tokenizer_knows_every_byte_and_word_once(model):
    tokenizer = read(model / "tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(len(SPECIAL) + 256 + len(set(WORDS))))
    assert len(vocabulary) <= CONFIG["vocab_size"]
    assert vocabulary["A"] - len(SPECIAL) == ord("A")
    assert vocabulary["\u0120"] - len(SPECIAL) == ord(" ")
    assert [token["content"] for token in tokenizer["added_tokens"]] == SPECIAL
    assert "<|assistant|>" in read(model / "tokenizer_config.json")["chat_template"]
