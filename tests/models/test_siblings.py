"""Sizes and switches that siblings of the tested checkpoints have: each loads, scores and goes back as it came."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_families import TINY, write

import unmask
from unmask.models.families import FAMILIES
from unmask.models.load import CONFIG, INDEX, WEIGHTS, _build
from unmask.models.weights import expected, pieces

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
ONE_KEY_HEAD, TIED = {"num_key_value_heads": 1}, {"tie_word_embeddings": True}
VARIANTS = {
    "llama": [ONE_KEY_HEAD, TIED, {"head_dim": 12, "attention_bias": True, "mlp_bias": True}, {"rope_scaling": LLAMA3}],
    "qwen2": [ONE_KEY_HEAD, {"num_attention_heads": 8, "tie_word_embeddings": False}, {"rope_scaling": YARN}],
    "qwen3": [ONE_KEY_HEAD, TIED, {"head_dim": 24, "attention_bias": True}],
    "gpt2": [{"n_inner": 20}, {"tie_word_embeddings": False}, {"n_head": 2, "activation_function": "gelu"}],
    "llada": [
        {"n_kv_heads": 2, "weight_tying": True},
        {"n_kv_heads": None, "mlp_hidden_size": None, "mlp_ratio": 2},
        {"include_bias": True},
        {"include_qkv_bias": True, "embedding_size": None, "rope_theta": 500000.0},
    ],
    "llada_moe": [
        {"moe_layer_freq": [1, 1], "qk_layernorm": False},
        {"num_experts": 5, "num_experts_per_tok": 5, "attention_bias": True, **TIED},
        {"num_experts_per_tok": 1, "num_key_value_heads": 4},
    ],
    "llada2_moe": [
        {"first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "num_shared_experts": 3, **TIED},
        {"num_shared_experts": None, "num_experts": 8, "n_group": 4, "topk_group": 3, "partial_rotary_factor": 0.25},
        {"partial_rotary_factor": 1.0, "head_dim": 12, "num_experts_per_tok": 1, "use_bias": True},
        {"first_k_dense_replace": 2, "use_qk_norm": False, "routed_scaling_factor": 1.0, **ONE_KEY_HEAD},
    ],
    "dream": [ONE_KEY_HEAD, TIED, {"num_attention_heads": 8, "rope_scaling": YARN}],
    "sdar": [{"block_size": 16, "head_dim": 24, "attention_bias": True}, {"block_size": 1, **TIED}],
    "sdar_moe": [{"num_experts": 7, "mlp_only_layers": [0], "norm_topk_prob": False}, {"block_size": 8, **TIED}],
    "fast_dllm_v2": [{"bd_size": 8, "tie_word_embeddings": False}],
    "mdlm": [{"time_conditioning": True}, {"n_heads": 2, "cond_dim": 5, "n_blocks": 3}],
    "bd3lm": [
        {"adaln": False, "block_size": 16},
        {"cross_attn": False},
        {"time_conditioning": True, "block_size": 1},
    ],
    "sedd": [
        {"model": {**TINY["sedd"]["model"], "scale_by_sigma": False}},
        {"noise": {"type": "geometric", "sigma_min": 1e-4, "sigma_max": 20}, "sampling": {"predictor": "analytic"}},
    ],
    "radd": [{"model": {**TINY["radd"]["model"], "n_heads": 2, "n_blocks": 3, "length": 40}}],
}
"""Changes to the tiny config of a family; what siblings of its fixtures may differ in."""
CASES = [(name, i) for name, several in VARIANTS.items() for i in range(len(several))]


def made(name, config, folder, dtype=torch.bfloat16):
    """Random tensors under the family's own names, in the shapes that a config asks for."""
    family = FAMILIES[name]
    model = _build(family, config, 10**9)
    layout = pieces(family.names(config, ()), model.shape, {n: p.shape for n, p in model.named_parameters()})
    draw = torch.Generator().manual_seed(11)
    tensors = {key: (torch.randn(size, generator=draw) / 4).to(dtype) for key, size in expected(layout).items()}
    write(folder, config, tensors)
    return tensors


def sharded(folder, tensors):
    """The same tensors in two files, as publishers name them."""
    names, shards = sorted(tensors), {}
    for i in range(2):
        file = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name].clone() for name in names[i::2]}, folder / file)
        shards |= dict.fromkeys(names[i::2], file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))
    (folder / WEIGHTS).unlink()


def tokens(size, rows=2, length=24):
    return torch.randint(size, (rows, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("name", "i"), CASES)
def test_it_loads_scores_and_goes_back(tmp_path, name, i):
    config = {**TINY[name], **VARIANTS[name][i]}
    tensors = made(name, config, tmp_path / "theirs")
    if i == 0:
        sharded(tmp_path / "theirs", tensors)
    lm = unmask.load(tmp_path / "theirs", device="cpu")
    assert lm.model.origin.family == name
    x, sigma = tokens(lm.model.vocab.size), {}
    if lm.model.traits.clock:
        sigma = {"sigma": torch.tensor([0.01, 3.0], dtype=torch.float64)}
    logits = lm.logits(x, **sigma)
    assert logits.shape == (2, 24, lm.model.shape.vocab_size)
    assert bool(logits.isfinite().all())
    assert float(logits.std()) > 1e-3

    there = torch.arange(24) >= torch.tensor([[7], [0]])  # padded on the left, its positions begun anew
    places = (there.cumsum(1) - 1).clamp(min=0)
    seen = there[:, None] & there[..., None]
    if lm.model.traits.sees == "left":
        seen = seen & torch.ones(24, 24, dtype=torch.bool).tril()
    padded = lm.logits(x, attend=seen, positions=places, **sigma)
    assert bool(padded.isfinite().all())
    rule = {"left": "causal", "all": "full"}.get(lm.model.traits.sees)
    if rule:
        alone = lm.logits(x[:1, 7:], attend=rule, **{key: value[:1] for key, value in sigma.items()})
        torch.testing.assert_close(padded[:1, 7:], alone, rtol=0, atol=1e-4)

    lm.save(tmp_path / "ours")
    back = load_file(tmp_path / "ours" / WEIGHTS)
    assert sorted(back) == sorted(tensors)
    assert all(back[key].dtype == value.dtype and torch.equal(back[key], value) for key, value in tensors.items())
    assert (tmp_path / "ours" / CONFIG).read_bytes() == (tmp_path / "theirs" / CONFIG).read_bytes()


@pytest.mark.parametrize(("name", "i"), CASES)
def test_its_own_decoder_writes(tmp_path, name, i):
    made(name, {**TINY[name], **VARIANTS[name][i]}, tmp_path)
    lm = unmask.load(tmp_path, device="cpu")
    out = lm.generate([3, 5, 7], length=16, eos="keep")
    assert len(out.tokens) == 16
    assert lm.model.vocab.mask not in out.tokens


SAME = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gpt2": "GPT2LMHead", "qwen3_moe": "Qwen3Moe"}
CLASSES = {
    **{name: VARIANTS[name] for name in ("llama", "qwen2", "qwen3", "gpt2")},
    "qwen3_moe": [{}, {"num_experts": 7, "norm_topk_prob": False, "mlp_only_layers": []}],
}


@pytest.mark.parametrize(("name", "i"), [(name, i) for name, several in CLASSES.items() for i in range(len(several))])
@torch.no_grad()
def test_transformers_reads_the_same_files(tmp_path, name, i):
    """Published names and keys, as older versions wrote them, mean to it what they mean to us."""
    made(name, {**TINY[name], **CLASSES[name][i], "torch_dtype": "float32"}, tmp_path, torch.float32)
    ours, x = unmask.load(tmp_path, device="cpu"), tokens(61)
    kind = f"{SAME[name]}Model" if name == "gpt2" else f"{SAME[name]}ForCausalLM"
    theirs = getattr(transformers, kind).from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(ours.logits(x), theirs(x).logits, rtol=0, atol=1e-4)
    seen = torch.ones(2, 1, 24, 24, dtype=torch.bool)
    torch.testing.assert_close(ours.logits(x, attend="full"), theirs(x, attention_mask=seen).logits, rtol=0, atol=1e-4)
