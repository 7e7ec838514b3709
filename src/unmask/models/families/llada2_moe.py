"""LLaDA2.0 and LLaDA2.1, mini and flash: Ling 2.0's mixture of experts, read block by block.

Source: Bie et al. 2025, arXiv:2512.15745; editing (2.1): Bie et al. 2026, arXiv:2602.08676; layouts: `LLaDA2MoeModelLM`
of the published remote code, with experts one by one, and of dFactory, which merges them for training.

No key of a published config.json tells 2.1 from 2.0; only the name that one library gives it does. To have the decoder
of 2.1 as the default, declare it (`unmask.models.profile`).
"""

from collections.abc import Collection

from unmask.base.vocab import Traits
from unmask.models.config import Reader, experts, llama_shape, vocab
from unmask.models.families.qwen3_moe import EACH
from unmask.models.family import Config, Described, Family
from unmask.models.weights import At, Names

PRESETS = {"llada2_moe": "llada2", "llada2_moe_veomni": "llada2", "llada21_moe": "llada2-edit"}
"""Decoders by `model_type`: as published, as in dFactory, and 2.1 as in dllm."""
ATTENTION = {"q_norm": At("query_layernorm"), "k_norm": At("key_layernorm"), "o_proj": At("dense")}
ATTENTION |= {
    "q_proj": At("query_key_value", part="q"),
    "k_proj": At("query_key_value", part="k"),
    "v_proj": At("query_key_value", part="v"),
}
NAMES: Names = {
    "embed_tokens": "model.word_embeddings",
    "layers.*": "model.layers.*",
    **{
        f"layers.*.self_attn.{ours}": At(f"model.layers.*.attention.{at.name}", at.part)
        for ours, at in ATTENTION.items()
    },
    "norm": "model.norm",
    "lm_head": "lm_head",
}
"""Every name but those of the experts, which are ours where they are merged."""


def _names(config: Config, keys: Collection[str]) -> Names:
    merged = any(key.endswith(".mlp.experts.gate_proj") for key in keys)
    return NAMES if merged else {**NAMES, **EACH}


def _describe(config: Config) -> Described:
    read = Reader(config)
    read.only(
        moe_router_enable_expert_bias=True,
        norm_head=False,
        norm_softmax=False,
        norm_topk_prob=True,
        score_function="sigmoid",
        use_rmsnorm=True,
        using_split_qkv_in_self_attention=False,
    )
    inner, chosen = read.whole("moe_intermediate_size"), read.whole("num_experts_per_tok")
    mixture = experts(
        read,
        num=read.whole("num_experts"),
        chosen=chosen,
        hidden=inner,
        shared=inner * read.whole("num_shared_experts", 0),
        dense=read.whole("first_k_dense_replace", 0),
        score="sigmoid",
        bias=True,
        normalise=chosen > 1,
        scale=read.real("routed_scaling_factor", 2.5),
        groups=read.whole("n_group", 8),
        chosen_groups=read.whole("topk_group", 4),
    )
    heads, width = read.whole("num_attention_heads"), read.whole("hidden_size")
    head_dim = read.whole("head_dim", width // max(heads, 1))
    shape = llama_shape(
        read,
        experts=mixture,
        head_dim=head_dim,
        rotary_dim=int(head_dim * read.real("partial_rotary_factor", 0.5)),
        qk_norm=read.flag("use_qk_norm", True),
        qkv_bias=read.flag("use_qkv_bias", False),
        output_bias=read.flag("use_bias", False),
        mlp_bias=False,
    )
    end = config.get("eos_token_id", config.get("pad_token_id"))
    return Described(
        shape=shape,
        vocab=vocab(read, shape.vocab_size, mask=read.whole("mask_token_id", 156895), eos=end),
        traits=Traits(sees="blocks", block=32),
        defaults={"decoder": PRESETS[config["model_type"]]},
    )


FAMILY = Family(
    name="llada2_moe",
    recognise=lambda config, keys: str(config.get("model_type")) in PRESETS,
    describe=_describe,
    names=_names,
    models="LLaDA2.0 mini and flash, LLaDA2.1 mini and flash, checkpoints of dFactory",
    source="ZHZisZZ/dllm, modeling_llada2_moe.py; inclusionAI/dFactory, moe_convertor.py",
    checked="logits and chosen experts of the published model class: block-causal, batch, full, cached; merged experts "
    "through round trips",
)
