"""Every family: its files come back as they went in, and what is wrong with them is one clear line."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_load import edit, rewrite

from unmask.base.attend import Attend
from unmask.base.errors import BadCheckpoint, Unsupported
from unmask.base.vocab import Traits
from unmask.models.families import FAMILIES
from unmask.models.load import CONFIG, INDEX, WEIGHTS, _build, load, save
from unmask.models.weights import expected, pieces

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}
MIXTURE = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "norm_topk_prob": True}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1}
LLADA2 = {"num_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "mask_token_id": 60}
DIT = {"vocab_size": 61, "hidden_dim": 32, "cond_dim": 12, "n_blocks": 2, "n_heads": 4, "model_length": 64}
NESTED = {"hidden_size": 32, "cond_dim": 12, "length": 64, "n_blocks": 2, "n_heads": 4}
TINY = {
    "unmask": {
        **{key: value for key, value in SIZES.items() if key != "rms_norm_eps"},
        "model_type": "unmask",
        "mask_token_id": 60,
        "experts": {"num": 6, "chosen": 2, "hidden": 20, "shared": 8, "dense": 1, "bias": True},
    },
    "llama": {**SIZES, "model_type": "llama"},
    "qwen2": {**SIZES, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {**SIZES, "model_type": "qwen3", "head_dim": 12},
    "qwen3_moe": {**SIZES, **MIXTURE, "model_type": "qwen3_moe", "mlp_only_layers": [0]},
    "gpt2": {**GPT2, "model_type": "gpt2", "torch_dtype": "float32"},
    "llada": {
        "model_type": "llada",
        "vocab_size": 61,
        "embedding_size": 64,
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 48,
        "max_sequence_length": 64,
        "mask_token_id": 60,
    },
    "llada_moe": {
        **SIZES,
        "model_type": "llada",
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "expert_intermediate_size": 20,
        "dense_intermediate_size": 40,
        "moe_layer_freq": [0, 1],
        "qk_layernorm": True,
        "mask_token_id": 60,
    },
    "llada2_moe": {**SIZES, **MIXTURE, **LLADA2, "model_type": "llada2_moe", "use_qkv_bias": True},
    "dream": {**SIZES, "model_type": "Dream", "mask_token_id": 60},
    "sdar": {**SIZES, "model_type": "sdar", "mask_token_id": 60},
    "sdar_moe": {**SIZES, **MIXTURE, "model_type": "sdar_moe", "mask_token_id": 60},
    "fast_dllm_v2": {**SIZES, "model_type": "Fast_dLLM_Qwen", "mask_token_id": 60, "tie_word_embeddings": True},
    "diffugpt": {**GPT2, "model_type": "gpt2", "mask_token_id": 60},
    "wedlm": {**SIZES, "model_type": "wedlm", "qk_norm": True, "attention_bias": False},
    "nemotron_labs_diffusion": {**SIZES, "model_type": "nemotron_labs_diffusion", "mask_token_id": 60},
    "diffusion_gemma": {
        "model_type": "diffusion_gemma",
        "canvas_length": 8,
        "text_config": {
            **{key: value for key, value in SIZES.items() if key not in ("rope_theta", "torch_dtype")},
            "head_dim": 8,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "moe_intermediate_size": 20,
            "num_experts": 6,
            "top_k_experts": 2,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
            },
        },
    },
    "mdlm": {**DIT, "model_type": "mdlm"},
    "bd3lm": {**DIT, "model_type": "bd3lm", "block_size": 4, "cross_attn": True, "adaln": True, "causal": False},
    "sedd": {
        "tokens": 60,
        "graph": {"type": "absorb"},
        "noise": {"type": "loglinear"},
        "model": {"type": "ddit", "scale_by_sigma": True, **NESTED},
    },
    "radd": {"tokens": 60, "model": {"type": "ddit_wot", **NESTED}},
}
"""A config.json of every family."""


def write(folder, config, tensors):
    folder.mkdir(exist_ok=True)
    save_file({name: value.clone() for name, value in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def invent(name, dtype, keys=()):
    """Random tensors under a family's own names, in the shapes of its tiny config."""
    if name not in TINY:
        pytest.fail(f"the family {name} has no tiny config in {__name__}.TINY; add one, so that its files are tested")
    family, config = FAMILIES[name], TINY[name]
    model = _build(family, config, 10**9)
    layout = pieces(family.names(config, keys), model.shape, {n: p.shape for n, p in model.named_parameters()})
    draw = torch.Generator().manual_seed(7)
    return {key: torch.randn(shape, generator=draw).to(dtype) for key, shape in expected(layout).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_files_come_back_as_they_went_in(tmp_path, name, dtype):
    tensors = invent(name, dtype)
    folder = write(tmp_path / "theirs", TINY[name], tensors)
    model = load(folder, "cpu")
    assert model.origin.family == name
    save(model, tmp_path / "ours")
    back = load_file(tmp_path / "ours" / WEIGHTS)
    assert sorted(back) == sorted(tensors)
    assert all(back[key].dtype == dtype and torch.equal(back[key], value) for key, value in tensors.items())
    if FAMILIES[name].config is None:
        assert json.loads((tmp_path / "ours" / CONFIG).read_text()) == TINY[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_says_where_it_is_from(name):
    family = FAMILIES[name]
    assert all((family.models, family.source, family.checked))
    assert FAMILIES[name].describe(TINY[name]).defaults.get("decoder") or name == "unmask"


# --- against golden files of the published code ---


def same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.fixture(scope="module", params=["llada_moe", "llada2_moe"])
def published(request):
    folder = GOLDEN / request.param
    return request.param, load(folder, "cpu"), load_file(folder / "golden.safetensors")


CASES = {"llada_moe": ["full", "batch2"], "llada2_moe": ["block_causal", "block_causal_batch2", "full"]}


@torch.no_grad()
def test_logits_are_those_of_the_published_code(published):
    name, model, golden = published
    for case in CASES[name]:
        tokens, given = golden[f"{case}.input_ids"], golden.get(f"{case}.attention_mask")
        attend = None if given is None else Attend(kind="given", given=given[:, 0].bool())
        same(model(tokens, attend=attend), golden[f"{case}.logits"])


@torch.no_grad()
def test_a_rule_of_blocks_is_the_given_mask():
    golden = load_file(GOLDEN / "llada2_moe" / "golden.safetensors")
    model = load(GOLDEN / "llada2_moe", "cpu")
    for case, block in (("block_causal", 4), ("block_causal_batch2", 10)):
        same(model(golden[f"{case}.input_ids"], attend=Attend(kind="blocks", block=block)), golden[f"{case}.logits"])


@torch.no_grad()
def test_experts_are_those_of_the_published_code():
    golden = load_file(GOLDEN / "llada2_moe" / "golden.safetensors")
    model, seen = load(GOLDEN / "llada2_moe", "cpu"), []
    for layer in model.layers[1:]:
        layer.mlp.gate.register_forward_hook(lambda gate, args, out: seen.append((args[0] @ gate.weight.t(), out[0])))
    for case in CASES["llada2_moe"]:
        tokens, given = golden[f"{case}.input_ids"], golden[f"{case}.attention_mask"][:, 0].bool()
        seen.clear()
        model(tokens, attend=Attend(kind="given", given=given))
        chosen = torch.stack([ids.view(*tokens.shape, -1).sort(-1).values for _, ids in seen])
        assert torch.equal(chosen, golden[f"{case}.experts"])
        same(torch.stack([logits.view(*tokens.shape, -1) for logits, _ in seen]), golden[f"{case}.router_logits"])


@torch.no_grad()
def test_over_a_cache():
    golden = load_file(GOLDEN / "llada2_moe" / "golden.safetensors")
    model = load(GOLDEN / "llada2_moe", "cpu")
    tokens, found = golden["cached.input_ids"], []
    cache, attend = model.cache(1, tokens.shape[1]), Attend(kind="blocks", block=4)
    for piece in (slice(0, 16), slice(16, 20)):
        positions = torch.arange(tokens.shape[1])[None, piece]
        keep = torch.full_like(positions, piece.start == 0).bool()
        read = model.read(tokens[:, piece], positions=positions, attend=attend, cache=cache, keep=keep)
        found.append(model.head(read))
    same(found[0], golden["cached.prefix_logits"])
    same(found[1], golden["cached.block_logits"])


@torch.no_grad()
def test_padding_on_the_right():
    golden = load_file(GOLDEN / "llada_moe" / "golden.safetensors")
    there = golden["rightpad.attention_mask"].bool()
    positions = torch.arange(there.shape[1]).expand(there.shape).masked_fill(~there, -1)
    found = load(GOLDEN / "llada_moe", "cpu")(golden["rightpad.input_ids"], positions=positions)
    same(found[there], golden["rightpad.logits"][there])


def test_what_the_published_configs_mean():
    moe, two = (load(GOLDEN / name, "cpu") for name in ("llada_moe", "llada2_moe"))
    assert (moe.origin.family, moe.traits, moe.defaults) == ("llada_moe", Traits(), {"decoder": "llada"})
    assert (moe.vocab.mask, moe.vocab.eos) == (140, 141)
    assert (two.traits, two.defaults) == (Traits(sees="blocks", block=32), {"decoder": "llada2"})
    assert (two.vocab.mask, two.vocab.eos, two.shape.rotary_dim) == (133, 130, 8)
    assert not any(layer.mlp.gate.expert_bias.requires_grad for layer in two.layers[1:])


@torch.no_grad()
def test_shards_and_merged_experts(tmp_path):
    """The experts of one layer in two files, and dFactory's layout, are the same model."""
    whole, golden = load(GOLDEN / "llada2_moe", "cpu"), load_file(GOLDEN / "llada2_moe" / "golden.safetensors")
    tensors = load_file(GOLDEN / "llada2_moe" / WEIGHTS)
    config = json.loads((GOLDEN / "llada2_moe" / CONFIG).read_text())
    sharded, names = tmp_path / "sharded", sorted(tensors)
    sharded.mkdir()
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, some in shards.items():
        save_file({name: tensors[name].clone() for name in some}, sharded / file)
    (sharded / INDEX).write_text(json.dumps({"weight_map": {n: file for file, some in shards.items() for n in some}}))
    (sharded / CONFIG).write_text(json.dumps(config))
    merged = {name: value for name, value in tensors.items() if ".experts." not in name}
    for layer in (1, 2):
        for part in ("gate_proj", "up_proj", "down_proj"):
            each = [tensors[f"model.layers.{layer}.mlp.experts.{e}.{part}.weight"] for e in range(12)]
            merged[f"model.layers.{layer}.mlp.experts.{part}"] = torch.stack(each)
    write(tmp_path / "merged", config | {"model_type": "llada2_moe_veomni"}, merged)
    for folder in ("sharded", "merged"):
        model = load(tmp_path / folder, "cpu")
        assert torch.equal(model(golden["full.input_ids"]), whole(golden["full.input_ids"]))
        save(model, tmp_path / f"{folder} again")
        back = load_file(tmp_path / f"{folder} again" / WEIGHTS)
        wanted = merged if folder == "merged" else tensors
        assert sorted(back) == sorted(wanted)
        assert all(torch.equal(back[name], value) for name, value in wanted.items())


# --- an output map that is the embedding, stored beside it ---


@pytest.mark.parametrize("name", ["diffugpt", "qwen2", "fast_dllm_v2"])
def test_a_tied_map_that_is_stored_too(tmp_path, name):
    tensors = invent(name, torch.bfloat16)
    embedding = next(key for key in tensors if key.endswith("embed_tokens.weight"))
    folder = write(tmp_path / "theirs", TINY[name], tensors | {"lm_head.weight": tensors[embedding]})
    model = load(folder, "cpu")
    with torch.no_grad():
        model.embed_tokens.weight[5] += 1
    save(model, tmp_path / "ours")
    back = load_file(tmp_path / "ours" / WEIGHTS)
    assert sorted(back) == sorted([*tensors, "lm_head.weight"])
    assert torch.equal(back["lm_head.weight"], back[embedding])
    assert not torch.equal(back[embedding], tensors[embedding])
    write(folder, TINY[name], tensors | {"lm_head.weight": tensors[embedding] + 1})
    with pytest.raises(BadCheckpoint, match=r"lm_head.weight is .*embed_tokens.weight, but .* two different tensors"):
        load(folder, "cpu")


# --- bad input ---


@pytest.fixture
def folder(tmp_path):
    for file in (CONFIG, WEIGHTS):
        shutil.copy(GOLDEN / "llada2_moe" / file, tmp_path)
    return tmp_path


def header(folder, length):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])


def cut(folder, size):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


FUSED, EXPERT = "model.layers.0.attention.query_key_value.weight", "model.layers.1.mlp.experts.3.up_proj.weight"
BROKEN = {
    "half a file": (lambda f: cut(f, 200000), "torn"),
    "header longer than the file": (lambda f: header(f, 10**6), "torn"),
    "header of absurd length": (lambda f: header(f, 2**62), "torn"),
    "misnamed": (lambda f: rewrite(f, lambda t: t.update(x=t.pop(EXPERT))), f"missing {EXPERT}; unexpected x"),
    "wrong shape of an expert": (lambda f: rewrite(f, lambda t: t.update({EXPERT: torch.ones(3, 4)})), r"\[16, 48\]"),
    "wrong shape of a fused map": (
        lambda f: rewrite(f, lambda t: t.update({FUSED: torch.ones(96, 48)})),
        r"\[128, 48\]",
    ),
    "fewer experts": (lambda f: edit(f, num_experts=8), "unexpected model.layers.1.mlp.experts.10"),
    "more experts": (lambda f: edit(f, num_experts=16), "missing model.layers.1.mlp.experts.12"),
    "absurdly many experts": (lambda f: edit(f, num_experts=4 * 10**9), "4000000000 experts, but there are"),
    "experts that groups don't divide": (lambda f: edit(f, num_experts=13), "13 experts can't come in 4 groups"),
    "more chosen than there are": (lambda f: edit(f, num_experts_per_tok=13), "of 12 experts"),
    "no key for a size": (lambda f: edit(f, moe_intermediate_size=None), "lacks moe_intermediate_size"),
    "a size of text": (lambda f: edit(f, n_group="4"), "n_group must be a whole number"),
    "more layers": (lambda f: edit(f, num_hidden_layers=4), "missing model.layers.3"),
    "wider": (lambda f: edit(f, hidden_size=64), "has shape"),
    "fewer dense layers": (lambda f: edit(f, first_k_dense_replace=0), "missing model.layers.0.mlp.experts"),
    "a mask outside": (lambda f: edit(f, mask_token_id=136), "mask_token_id must be an id below 136"),
    "no such half": (lambda f: edit(f, partial_rotary_factor=0.2), "rotary_dim must be even"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_bad_checkpoints_are_one_clear_line(folder, case):
    damage, words = BROKEN[case]
    damage(folder)
    with pytest.raises(BadCheckpoint, match=words) as caught:
        load(folder, "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llada2_moe", {"score_function": "softmax"}, "score_function is 'softmax'"),
        ("llada2_moe", {"use_sliding_window": True}, "use_sliding_window"),
        ("llada_moe", {"norm_topk_prob": True}, "norm_topk_prob is True"),
        ("llada_moe", {"moe_layer_freq": [1, 0]}, "zeros and then ones"),
        ("llada_moe", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size is 8"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ("sdar_moe", {"mlp_only_layers": [1]}, r"mlp_only_layers is \[1\]"),
        ("sdar_moe", {"mlp_only_layers": 5}, "mlp_only_layers is 5"),
        ("nemotron_labs_diffusion", {"sliding_window": 32}, "sliding_window is 32"),
    ],
)
def test_other_mathematics_is_refused(name, changes, words):
    with pytest.raises(Unsupported, match=words):
        FAMILIES[name].describe(TINY[name] | changes)


@pytest.mark.parametrize(
    ("config", "near"),
    [
        ({"model_type": "llada3_moe"}, "llada2_moe"),
        ({"model_type": "qwen3_moe_next"}, "qwen3_moe"),
        ({"model_type": ["llada2_moe"]}, "llada2_moe"),
        ({"architectures": ["SDARMoe"]}, "sdar_moe"),
        ({"architectures": "none"}, "known: "),
        ({}, "known: "),
    ],
)
def test_an_unknown_architecture_names_the_nearest(folder, config, near):
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(Unsupported, match=near):
        load(folder, "cpu")


def test_a_model_that_learnt_to_resize_gaps_says_so(tmp_path):
    """The token that expands is a fact of its config; its end of text deletes."""
    resizing = TINY["dream"] | {"expand_token_id": 59, "eos_token_id": 3}
    folder = write(tmp_path / "theirs", resizing, invent("dream", torch.float32))
    model = load(folder, "cpu")
    assert (model.vocab.expand, model.vocab.delete, model.vocab.eos) == (59, 3, 3)
    assert model.defaults == {"decoder": "dreamon"}
    save(model, tmp_path / "again")
    assert load(tmp_path / "again", "cpu").vocab == model.vocab
    other = load(write(tmp_path / "plain", TINY["dream"], invent("dream", torch.float32)), "cpu")
    assert (other.vocab.expand, other.vocab.delete) == (None, None)
    for family, changes in (("dream", {"expand_token_id": 61}), ("unmask", {"delete_token_id": 99})):
        with pytest.raises(BadCheckpoint, match=next(iter(changes))):
            FAMILIES[family].describe(TINY[family] | changes)
    ours = FAMILIES["unmask"].describe(TINY["unmask"] | {"expand_token_id": 5, "delete_token_id": 6})
    assert (ours.vocab.expand, ours.vocab.delete) == (5, 6)
