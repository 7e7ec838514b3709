"""The backbone computes what transformers computes: tiny random models, saved by it and loaded by us."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from unmask.base.attend import Attend
from unmask.base.errors import Unsupported
from unmask.models.load import CONFIG, WEIGHTS, load, save

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 5000.0, **more}}


STRETCHED = {"factor": 4.0, "original_max_position_embeddings": 16}
CASES = {
    "gpt2": ("GPT2", GPT2),
    "gpt2, untied and narrow": ("GPT2", {**GPT2, "tie_word_embeddings": False, "n_inner": 40}),
    "llama": ("Llama", SIZES),
    "llama, tied": ("Llama", {**SIZES, "tie_word_embeddings": True}),
    "llama, biased, wide heads": ("Llama", {**SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama, one key head": ("Llama", {**SIZES, "num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
    "llama, linear": ("Llama", {**SIZES, **rope("linear", factor=2.5)}),
    "llama, llama3": ("Llama", {**SIZES, **rope("llama3", **STRETCHED, low_freq_factor=1.0, high_freq_factor=4.0)}),
    "llama, yarn": ("Llama", {**SIZES, **rope("yarn", **STRETCHED)}),
    "llama, yarn, every key": (
        "Llama",
        {**SIZES, **rope("yarn", **STRETCHED, attention_factor=0.7, beta_fast=4.0, beta_slow=0.5, truncate=False)},
    ),
    "llama, yarn, two factors": ("Llama", {**SIZES, **rope("yarn", **STRETCHED, mscale=1.0, mscale_all_dim=0.5)}),
    "llama, yarn, one factor": ("Llama", {**SIZES, **rope("yarn", **STRETCHED, mscale=2.0)}),
    "llama, yarn, no original": ("Llama", {**SIZES, **rope("yarn", factor=2.0)}),
    "qwen2": ("Qwen2", SIZES),
    "qwen2, tied": ("Qwen2", {**SIZES, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 12}),
    "qwen3, tied, yarn": ("Qwen3", {**SIZES, "head_dim": 8, "tie_word_embeddings": True, **rope("yarn", **STRETCHED)}),
}
"""Class and configuration."""


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """Their model, ours, and the folder between."""
    name, sizes = CASES[request.param]
    folder = tmp_path_factory.mktemp("model")
    config = getattr(transformers, f"{name}Config")(**sizes)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = getattr(transformers, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config).eval()
        with torch.no_grad():
            for weight in theirs.parameters():  # far from the first weights: norms not 1, biases not 0, logits not flat
                weight.add_(torch.randn_like(weight) * 0.1)
    theirs.save_pretrained(folder)
    return theirs, load(folder, "cpu"), folder


def tokens(rows=2, length=40):
    return torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(5))


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def test_causal(pair):
    theirs, ours, _ = pair
    wanted = theirs(tokens()).logits
    assert float(wanted.std()) > 0.1
    same(ours(tokens()), wanted)


@torch.no_grad()
def test_all_visible(pair):
    theirs, ours, _ = pair
    seen = torch.ones(2, 1, 40, 40, dtype=torch.bool)
    same(ours(tokens(), attend=Attend()), theirs(tokens(), attention_mask=seen).logits)


@torch.no_grad()
def test_padding_on_the_left(pair):
    theirs, ours, _ = pair
    there = torch.ones(2, 40, dtype=torch.bool)
    there[0, :7] = False
    places = (there.cumsum(1) - 1).clamp(min=0)
    wanted = theirs(tokens(), attention_mask=there.long(), position_ids=places).logits
    same(ours(tokens(), positions=places.masked_fill(~there, -1))[there], wanted[there])


@torch.no_grad()
def test_over_a_cache(pair):
    theirs, ours, _ = pair
    cache, attend, places = ours.cache(2, 40), Attend.native(ours.traits), torch.arange(40).expand(2, -1)
    memory = transformers.DynamicCache(config=theirs.config)
    for piece in (slice(0, 24), slice(24, 25), slice(25, 40)):
        at = places[:, piece]
        keep = torch.ones_like(at, dtype=torch.bool)
        found = ours.head(ours.read(tokens()[:, piece], positions=at, attend=attend, cache=cache, keep=keep))
        same(found, theirs(tokens()[:, piece], position_ids=at, cache=memory, use_cache=True).logits)


def test_it_goes_back_as_it_came(pair, tmp_path):
    _, ours, folder = pair
    save(ours, tmp_path)
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert {name: value.dtype for name, value in before.items()} == {name: value.dtype for name, value in after.items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert json.loads((folder / CONFIG).read_text()) == json.loads((tmp_path / CONFIG).read_text())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        (rope("dynamic", factor=2.0), "rope_type is 'dynamic'"),
        (rope("default", partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
    ],
)
def test_other_mathematics_is_refused(tmp_path, changes, words):
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)).save_pretrained(tmp_path)
    told = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(told | changes))
    with pytest.raises(Unsupported, match=words):
        load(tmp_path, "cpu")
