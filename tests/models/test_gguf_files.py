"""GGUF files that are torn, absurd, or of other models: one clear line each."""

import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import small_gguf
from small_gguf import publish, tokens_of, twin, write
from small_tokenizers import byte_level
from unmask.base.errors import BadCheckpoint, Unsupported
from unmask.models import gguf
from unmask.models.load import contents, load

CPU = torch.device("cpu")


@pytest.fixture
def file(tmp_path):
    return twin(tmp_path, tokens=tokens_of(byte_level(), "smollm"))[1]


def test_a_torn_file_is_one_clear_line_wherever_it_ends(file, tmp_path):
    whole = file.read_bytes()
    for size in [0, 3, 4, 7, 20, 23, 24, 31, *range(40, 14000, 371), len(whole) - 1]:
        torn = tmp_path / "torn.gguf"
        torn.write_bytes(whole[:size])
        with pytest.raises(BadCheckpoint, match=r"torn\.gguf") as caught:
            contents(torn)
        assert "\n" not in str(caught.value)


def header(*values):
    """The head of a file from strings, (layout, number) pairs and raw bytes."""
    out = b"GGUF" + struct.pack("<I", 3)
    for value in values:
        if isinstance(value, str):
            out += struct.pack("<Q", len(value)) + value.encode()
        else:
            out += value if isinstance(value, bytes) else struct.pack(*value)
    return out


Q, I = "<Q", "<I"  # noqa: E741
ABSURD = {
    "no GGUF": (b"GGML" + bytes(100), "does not begin with GGUF"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(100), "version 1"),
    "other bytes first": (b"GGUF" + struct.pack(">I", 3) + bytes(100), "version 50331648"),
    "keys": (header((Q, 0), (Q, 2**63), "a", (I, 4), (I, 7)), "torn"),
    "tensors": (header((Q, 2**63), (Q, 0)), "torn"),
    "a long name": (header((Q, 0), (Q, 1), (Q, 2**62)), "torn"),
    "a long text": (header((Q, 0), (Q, 1), "a", (I, 8), (Q, 2**62)), "torn"),
    "a long array": (header((Q, 0), (Q, 1), "a", (I, 9), (I, 0), (Q, 2**62)), "torn"),
    "a long array of texts": (header((Q, 0), (Q, 1), "a", (I, 9), (I, 8), (Q, 2**62)), "torn"),
    "an array of arrays": (header((Q, 0), (Q, 1), "a", (I, 9), (I, 9), (Q, 1)), "unknown type 9"),
    "a value of no type": (header((Q, 0), (Q, 1), "a", (I, 13)), "unknown type 13"),
    "a key twice": (header((Q, 0), (Q, 2), "a", (I, 4), (I, 7), "a", (I, 4), (I, 7)), "repeats a"),
    "a tensor twice": (header((Q, 2), (Q, 0), *["a", (I, 1), (Q, 1), (I, 0), (Q, 0)] * 2), "repeats a"),
    "a huge tensor": (header((Q, 1), (Q, 0), "a", (I, 2), (Q, 2**62), (Q, 2**62), (I, 0), (Q, 0)), "torn: a"),
    "a tensor far away": (header((Q, 1), (Q, 0), "a", (I, 1), (Q, 1), (I, 0), (Q, 2**63)), "torn: a"),
    "dimensions": (header((Q, 1), (Q, 0), "a", (I, 2**31), bytes(999)), "a can't have the shape"),
    "no numbers": (header((Q, 1), (Q, 0), "a", (I, 1), (Q, 0), (I, 0), (Q, 0)), r"the shape \[0\]"),
    "whole numbers": (header((Q, 1), (Q, 0), "a", (I, 1), (Q, 4), (I, 26), (Q, 0), bytes(99)), "of kind 26"),
    "unknown numbers": (header((Q, 1), (Q, 0), "a", (I, 1), (Q, 4), (I, 99), (Q, 0), bytes(99)), "of kind 99"),
    "half a block": (
        header((Q, 1), (Q, 0), "a", (I, 1), (Q, 33), (I, 3), (Q, 0), bytes(99)),
        "can't be packed as Q4_1",
    ),
    "alignment": (header((Q, 0), (Q, 1), "general.alignment", (I, 4), (I, 0)), "alignment must be"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_files(tmp_path, case):
    raw, says = ABSURD[case]
    (tmp_path / "x.gguf").write_bytes(raw)
    with pytest.raises((BadCheckpoint, Unsupported), match=says):
        contents(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"arch": "mamba"}, Unsupported, "GGUF files of 'mamba' can't be read; those of llama, qwen2, qwen3 can"),
        ({"told": {"llama.expert_count": 8}}, Unsupported, "expert_count is 8"),
        ({"told": {"llama.attention.sliding_window": 8}}, Unsupported, "llama.attention.sliding_window"),
        ({"told": {"llama.attention.causal": False}}, Unsupported, "attention.causal is False"),
        ({"told": {"llama.rope.dimension_count": 8}}, Unsupported, "rope.dimension_count is 8"),
        ({"told": {"llama.rope.scaling.type": "longrope"}}, Unsupported, "stretched by 'longrope'"),
        ({"told": {"split.count": 3}}, Unsupported, "one part of 3"),
        ({"told": {"llama.block_count": 3}}, BadCheckpoint, "missing model.layers.2"),
        ({"told": {"llama.block_count": "2"}}, BadCheckpoint, "block_count must be a whole number"),
        ({"told": {"llama.block_count": 4000000000}}, BadCheckpoint, "4000000000 layers"),
        ({"told": {"llama.attention.head_count": 5}}, BadCheckpoint, "rows"),
        ({"drop": "blk.1.ffn_up.weight"}, BadCheckpoint, r"missing model.layers.1.mlp.up_proj.weight"),
        ({"drop": "token_embd.weight"}, BadCheckpoint, "no token_embd.weight"),
        ({"more": {"extra.weight": np.ones(4)}}, BadCheckpoint, "unexpected extra.weight"),
        ({"more": {"rope_freqs.weight": np.full(8, 3.0)}}, Unsupported, "another way than Llama 3"),
        ({"more": {"rope_freqs.weight": np.ones(3)}}, Unsupported, "another way than Llama 3"),
    ],
)
def test_other_models_are_refused(tmp_path, changes, error, says):
    sizes = publish(tmp_path / "published")
    weights = load_file(tmp_path / "published" / "model.safetensors")
    told, arch = dict(changes.get("told", {})), changes.get("arch", "llama")
    for key in [key for key in small_gguf.KEYS if f"llama.{small_gguf.KEYS[key]}" in told]:
        del sizes[key]
    if drop := changes.get("drop"):
        del weights[gguf._published(drop)]
    if "told" in changes and "llama.attention.head_count" in told:
        sizes["num_attention_heads"] = 4
        heads = told.pop("llama.attention.head_count")
        path = write(tmp_path / "x.gguf", arch, sizes, weights, told=told, more=changes.get("more", {}))
        raw = path.read_bytes()
        at = raw.index(b"llama.attention.head_count") + len("llama.attention.head_count") + 4
        path.write_bytes(raw[:at] + struct.pack("<I", heads) + raw[at + 4 :])
    else:
        path = write(tmp_path / "x.gguf", arch, sizes, weights, told=told, more=changes.get("more", {}))
    with pytest.raises(error, match=says):
        load(path, "cpu")
