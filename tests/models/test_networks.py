"""Families without golden files compute what the network of transformers computes that they are."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file
from test_families import GPT2, MIXTURE, SIZES, TINY, same, write

from unmask.base.attend import Attend
from unmask.base.vocab import Traits
from unmask.models.families import FAMILIES
from unmask.models.load import CONFIG, WEIGHTS, load

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

MINISTRAL = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 0.25,
    "original_max_position_embeddings": 256,
    "llama_4_scaling_beta": 0.1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
TWINS = {
    "qwen3_moe": ("Qwen3Moe", MIXTURE, {}),
    "qwen3_moe, dense, not normalised": ("Qwen3Moe", {**MIXTURE, "norm_topk_prob": False, "mlp_only_layers": [0]}, {}),
    "sdar_moe": ("Qwen3Moe", MIXTURE, {"model_type": "sdar_moe", "mask_token_id": 60}),
    "fast_dllm_v2": ("Qwen2", {}, {"model_type": "Fast_dLLM_Qwen", "mask_token_id": 60, "bd_size": 8}),
    "wedlm": ("Qwen3", {"head_dim": 12}, {"model_type": "wedlm", "qk_norm": True, "attention_bias": False}),
    "wedlm, of Qwen2.5": ("Qwen2", {}, {"model_type": "wedlm"}),
    "diffugpt": ("GPT2", GPT2, {"mask_token_id": 60}),
    "nemotron_labs_diffusion": (
        "Ministral3",
        {"rope_parameters": MINISTRAL},
        {"model_type": "nemotron_labs_diffusion"},
    ),
}
"""Their class and configuration, and what our family's config.json says instead."""
RENAMED = {
    "diffugpt": (("transformer.wte.", "embed_tokens."), ("transformer.", "denoise_model.")),
    "nemotron_labs_diffusion": (("model.", "encoder."), ("lm_head.", "diffusion_head.")),
}


def tokens(rows=2, length=40):
    return torch.randint(60, (rows, length), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", params=TWINS)
def twins(request, tmp_path_factory):
    """Their model, and ours from its weights under our family's names."""
    kind, sizes, told = TWINS[request.param]
    name = request.param.partition(",")[0]
    base = {k: v for k, v in SIZES.items() if k not in ("torch_dtype", "rope_theta")}
    config = getattr(transformers, f"{kind}Config")(**(GPT2 if kind == "GPT2" else {**base, **sizes}))
    with torch.random.fork_rng():
        torch.manual_seed(3)
        theirs = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).eval()
        with torch.no_grad():
            for weight in theirs.parameters():  # far from the first weights: norms not 1, biases not 0, logits not flat
                weight.add_(torch.randn_like(weight) * 0.1)
    folder = tmp_path_factory.mktemp("twins")
    theirs.save_pretrained(folder)
    tensors = {}
    for key, value in load_file(folder / WEIGHTS).items():
        new = next((key.replace(a, b, 1) for a, b in RENAMED.get(name, ()) if key.startswith(a)), key)
        tensors[new] = value
    write(folder, json.loads((folder / CONFIG).read_text()) | told, tensors)
    return name, theirs, load(folder, "cpu")


@torch.no_grad()
def test_logits_are_those_of_the_same_network(twins):
    name, theirs, ours = twins
    assert ours.origin.family == name
    place = torch.arange(40)
    rules = {
        "full": (Attend(), torch.ones(40, 40, dtype=torch.bool)),
        "causal": (Attend(kind="causal"), place[:, None] >= place),
        "blocks": (Attend(kind="blocks", block=8), place[:, None] // 8 >= place // 8),
    }
    for attend, seen in rules.values():
        wanted = theirs(tokens(), attention_mask=seen.expand(2, 1, -1, -1)).logits
        assert float(wanted.std()) > 0.1
        same(ours(tokens(), attend=attend), wanted)


def test_how_to_talk_to_them(twins):
    name, _, ours = twins
    traits = {
        "qwen3_moe": (Traits(sees="left", speaks="next"), "ar", None),
        "sdar_moe": (Traits(sees="blocks", block=4), "sdar", 60),
        "fast_dllm_v2": (Traits(sees="blocks", block=8, speaks="next"), "sdar", 60),
        "wedlm": (Traits(sees="left", speaks="next"), "ar", None),
        "diffugpt": (Traits(sees="all", speaks="next"), "mdlm", 60),
        "nemotron_labs_diffusion": (Traits(sees="left", speaks="next"), "ar", None),
    }
    assert (ours.traits, ours.defaults["decoder"], ours.vocab.mask) == traits[name]


def test_positions_whose_queries_would_be_stretched_are_refused():
    config = TINY["nemotron_labs_diffusion"] | {"max_position_embeddings": 1024, "rope_parameters": MINISTRAL}
    assert FAMILIES["nemotron_labs_diffusion"].describe(config).shape.max_length == 256


@pytest.mark.parametrize(
    ("changes", "rows", "mask"),
    [
        ({"vocab_size": 50257, "n_embd": 768, "n_head": 12}, 50257, 10541),
        ({"vocab_size": 50257, "n_embd": 1024, "n_head": 16}, 50258, 50257),
        ({"vocab_size": 50258, "n_embd": 1024, "n_head": 16}, 50258, 50257),
    ],
    ids=["S", "M, its config behind", "M"],
)
def test_sizes_of_diffugpt(changes, rows, mask):
    config = {key: value for key, value in (TINY["diffugpt"] | changes).items() if key != "mask_token_id"}
    described = FAMILIES["diffugpt"].describe(config)
    assert (described.shape.vocab_size, described.vocab.size, described.vocab.mask) == (rows, rows, mask)
