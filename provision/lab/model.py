"""A tiny random model of the DeepSeek-V3 architecture: what the lab serves in place of 689 GB of weights.

It is whole in the ways that serving depends on (latent attention, routed and shared experts, shards with an index, a
tokenizer, a chat template), and made in well under a second by the standard library alone. Equal seeds, equal files.
Its answers are random words: `WORDS` are the only tokens with weight in the output layer.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from statistics import NormalDist
from typing import Any

SPECIAL = ["<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
_VOICE = (
    "the a this that every some one two many few it we you they is was has gives takes makes finds holds moves waits "
    "reads writes sends counts serves learns answers and or but then while because so where when of in on with from to "
    "under over between after before small large fast slow warm cold bright quiet open closed new old first last even "
    "odd blue green red silver round deep high low long short near far water stone light cloud river forest garden "
    "letter number question answer machine engine memory fabric link rack lamp clock bridge harbor signal window table "
    "paper circle corner morning evening winter summer road city island mountain field engineer reader builder sailor "
    "teacher neighbor friend queue batch token layer expert model weight vector matrix kernel driver cluster node port"
)
WORDS = _VOICE.split()
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

HIDDEN, DENSE, EXPERT = 128, 256, 128  # widths: model, dense layer, one expert
LAYERS, EXPERTS, HEADS = 2, 8, 4  # the first layer is dense, the others have experts
Q_RANK, KV_RANK, ROPE, NOPE, VALUE = (
    64,
    512,
    64,
    128,
    128,
)  # latent attention; the kernels want KV_RANK and ROPE as they are
FIRST_WORD = len(SPECIAL) + 256
VOCABULARY = -(-(FIRST_WORD + len(WORDS)) // 64) * 64

CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dtype": "bfloat16",
    "eos_token_id": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": DENSE,
    "kv_lora_rank": KV_RANK,
    "max_position_embeddings": 1024,
    "moe_intermediate_size": EXPERT,
    "n_group": 2,
    "n_routed_experts": EXPERTS,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": HEADS,
    "num_experts_per_tok": 2,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": HEADS,
    "pad_token_id": 2,
    "q_lora_rank": Q_RANK,
    "qk_nope_head_dim": NOPE,
    "qk_rope_head_dim": ROPE,
    "rms_norm_eps": 1e-06,
    "rope_interleave": True,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "use_cache": True,
    "v_head_dim": VALUE,
    "vocab_size": VOCABULARY,
}


def write_model(directory: Path, *, seed: int = 0, shards: int = 2) -> None:
    """Write the whole model directory: configuration, tokenizer, about 4 MB of bfloat16 weights in `shards` files."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_json(directory / "config.json", CONFIG)
    # Only the likeliest tokens are sampled, all of which are words; a random model would never stop by itself.
    _write_json(directory / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "top_k": 20})
    _write_json(directory / "tokenizer.json", _tokenizer())
    _write_json(directory / "tokenizer_config.json", _tokenizer_config())
    generator = random.Random(seed)  # noqa: S311  reproducible, not secret
    _write_weights(directory, {name: _values(name, shape, generator) for name, shape in _tensors()}, shards)


def _tensors() -> Iterator[tuple[str, list[int]]]:
    """Name and shape of every tensor, in the order of the checkpoint."""
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", [HIDDEN]
        yield f"{at}.self_attn.q_a_proj.weight", [Q_RANK, HIDDEN]
        yield f"{at}.self_attn.q_a_layernorm.weight", [Q_RANK]
        yield f"{at}.self_attn.q_b_proj.weight", [HEADS * (NOPE + ROPE), Q_RANK]
        yield f"{at}.self_attn.kv_a_proj_with_mqa.weight", [KV_RANK + ROPE, HIDDEN]
        yield f"{at}.self_attn.kv_a_layernorm.weight", [KV_RANK]
        yield f"{at}.self_attn.kv_b_proj.weight", [HEADS * (NOPE + VALUE), KV_RANK]
        yield f"{at}.self_attn.o_proj.weight", [HIDDEN, HEADS * VALUE]
        yield f"{at}.post_attention_layernorm.weight", [HIDDEN]
        if layer < CONFIG["first_k_dense_replace"]:
            yield from _mlp(f"{at}.mlp", DENSE)
            continue
        yield f"{at}.mlp.gate.weight", [EXPERTS, HIDDEN]
        yield f"{at}.mlp.gate.e_score_correction_bias", [EXPERTS]
        for part in [f"experts.{expert}" for expert in range(EXPERTS)] + ["shared_experts"]:
            yield from _mlp(f"{at}.mlp.{part}", EXPERT)
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCABULARY, HIDDEN]


def _mlp(at: str, width: int) -> Iterator[tuple[str, list[int]]]:
    yield f"{at}.gate_proj.weight", [width, HIDDEN]
    yield f"{at}.up_proj.weight", [width, HIDDEN]
    yield f"{at}.down_proj.weight", [HIDDEN, width]


def _values(name: str, shape: list[int], generator: random.Random) -> tuple[list[int], bytes]:
    """Shape and bfloat16 bytes of one tensor: ones for norms, zeros for the routing bias, else normal around zero."""
    count = shape[0] * (shape[1] if len(shape) > 1 else 1)
    if "norm" in name:
        return shape, _bfloat16(1.0) * count
    if name.endswith("bias"):
        return shape, _bfloat16(0.0) * count
    if name == "lm_head.weight":
        rest = _bfloat16(0.0) * HIDDEN
        words = _normal(len(WORDS) * HIDDEN, 0.1, generator)
        return shape, rest * FIRST_WORD + words + rest * (VOCABULARY - FIRST_WORD - len(WORDS))
    return shape, _normal(count, 0.02, generator)


def _normal(count: int, deviation: float, generator: random.Random) -> bytes:
    """`count` bfloat16 numbers, each one of 256 quantiles of a normal distribution."""
    quantiles = [_bfloat16(NormalDist(0, deviation).inv_cdf((index + 0.5) / 256)) for index in range(256)]
    picks = generator.randbytes(count)
    numbers = bytearray(2 * count)
    for byte in (0, 1):
        numbers[byte::2] = picks.translate(bytes(quantile[byte] for quantile in quantiles))
    return bytes(numbers)


def _bfloat16(number: float) -> bytes:
    """The upper half of the float32, little-endian."""
    return struct.pack("<f", number)[2:]


def _write_weights(directory: Path, tensors: dict[str, tuple[list[int], bytes]], shards: int) -> None:
    """Spread the tensors over shards of about equal size, and write the index that says which tensor is where."""
    total = sum(len(data) for _, data in tensors.values())
    groups: list[dict[str, tuple[list[int], bytes]]] = [{} for _ in range(shards)]
    written = 0
    for name, tensor in tensors.items():
        groups[min(written * shards // total, shards - 1)][name] = tensor
        written += len(tensor[1])
    where = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        (directory / file).write_bytes(_safetensors(group))
        where.update(dict.fromkeys(group, file))
    _write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _safetensors(tensors: dict[str, tuple[list[int], bytes]]) -> bytes:
    """One safetensors file: the length of the header, the header as JSON padded to 8 bytes, the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values())


def _tokenizer() -> dict[str, Any]:
    """A byte-level tokenizer: any text is encoded byte by byte; the words beyond are only ever generated."""
    tokens = [*SPECIAL, *_byte_alphabet(), *(f"\u0120{word}" for word in WORDS)]  # U+0120 stands for a space
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": token, **special} for index, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}, "merges": []},
    }


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each of the 256 bytes in byte-level tokenizers."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|eos|>",
        "pad_token": "<|pad|>",
        "model_max_length": CONFIG["max_position_embeddings"],
        "chat_template": CHAT_TEMPLATE,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
