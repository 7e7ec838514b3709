"""The backbone computes what published code computes: same weights, same tokens, same logits."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unmask.base.attend import Attend
from unmask.models.load import load

GOLDEN = Path(__file__).parents[1] / "golden"
SAME = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "head_dim",
}
SAME |= {"max_position_embeddings", "hidden_act", "attention_bias", "mlp_bias", "tie_word_embeddings", "vocab_size"}
SAME |= {"eos_token_id", "bos_token_id", "mask_token_id", "rope_theta"}
OURS = {
    "llama": {"traits": {"sees": "left", "speaks": "next"}},
    "sdar": {"traits": {"sees": "blocks", "block": 4}, "qk_norm": True},
}


@pytest.fixture(scope="module", params=["plain", "sdpa"])
def attention(request):
    return request.param


@pytest.fixture(scope="module", params=["llama", "sdar"])
def checkpoint(request, attention, tmp_path_factory):
    """The model, loaded from its published weights under a config.json of our layout, and what it must say."""
    source, folder = GOLDEN / request.param, tmp_path_factory.mktemp(request.param)
    told = json.loads((source / "config.json").read_text())
    ours = {key: value for key, value in told.items() if key in SAME}
    ours |= {"model_type": "unmask", "norm_eps": told["rms_norm_eps"], **OURS[request.param]}
    (folder / "config.json").write_text(json.dumps(ours))
    shutil.copy(source / "model.safetensors", folder)
    model = load(folder, device="cpu")
    model.attention = attention
    return request.param, model, load_file(source / "golden.safetensors")


def same(found, wanted):
    """Up to the float32 of the file itself, whose largest logits are about 40 (llama) and 9 (sdar)."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=max(1e-5, 1e-6 * float(wanted.abs().max())))


RULES = {
    "llama": {"causal": None, "batch2": None, "bidirectional": Attend()},
    "sdar": {"block_causal": None, "block_causal_2x": Attend(kind="blocks", block=8), "full": Attend()},
}


@torch.no_grad()
def test_whole_rows(checkpoint):
    name, model, golden = checkpoint
    for case, attend in RULES[name].items():
        tokens = golden[f"{case}.input_ids"]
        same(model(tokens, attend=attend), golden[f"{case}.logits"])
        if f"{case}.attention_mask" in golden:
            given = golden[f"{case}.attention_mask"].bool()
            same(model(tokens, attend=Attend(kind="given", given=given)), golden[f"{case}.logits"])


@torch.no_grad()
def test_over_a_cache(checkpoint):
    _, model, golden = checkpoint
    tokens, prefix = golden["cached.input_ids"], golden["cached.prefix_logits"].shape[1]
    attend, cache, found = Attend.native(model.traits), model.cache(1, tokens.shape[1]), []
    for piece in (slice(0, prefix), slice(prefix, None)):
        positions = torch.arange(tokens.shape[1])[None, piece]
        keep = torch.full_like(positions, piece.start == 0).bool()
        features = model.read(tokens[:, piece], positions=positions, attend=attend, cache=cache, keep=keep)
        found.append(model.head(features))
    same(found[0], golden["cached.prefix_logits"])
    same(found[1], golden["cached.block_logits"])
    assert cache.held.tolist() == [prefix]


@torch.no_grad()
def test_padding_on_the_left(checkpoint):
    name, model, golden = checkpoint
    if name != "llama":
        pytest.skip("this file has no padded case")
    there = golden["leftpad.attention_mask"].bool()
    positions = golden["leftpad.position_ids"].masked_fill(~there, -1)
    same(model(golden["leftpad.input_ids"], positions=positions)[there], golden["leftpad.logits"][there])
