"""GPT-2: learned positions, LayerNorm, biases everywhere; linear maps stored as (in, out), one for q, k and v.

Source: Radford et al. 2019; layout: `GPT2LMHeadModel` of transformers.
"""

from collections.abc import Collection

from unmask.models.config import ACTIVATIONS, Reader, autoregressive, shape
from unmask.models.family import Config, Described, Family
from unmask.models.weights import At, Names

BLOCK: dict[str, At] = {
    "input_layernorm": At("ln_1"),
    "self_attn.q_proj": At("attn.c_attn", part="q", turned=True),
    "self_attn.k_proj": At("attn.c_attn", part="k", turned=True),
    "self_attn.v_proj": At("attn.c_attn", part="v", turned=True),
    "self_attn.o_proj": At("attn.c_proj", turned=True),
    "post_attention_layernorm": At("ln_2"),
    "mlp.up_proj": At("mlp.c_fc", turned=True),
    "mlp.down_proj": At("mlp.c_proj", turned=True),
}
"""One layer's names."""


def names(config: Config, keys: Collection[str]) -> Names:
    """Where parameters are stored; some files have a prefix."""
    prefix = "transformer." if any(key.startswith("transformer.") for key in keys) else ""
    return {
        "embed_tokens": f"{prefix}wte",
        "embed_positions": f"{prefix}wpe",
        "norm": f"{prefix}ln_f",
        "lm_head": "lm_head",
        **{f"layers.*.{ours}": At(f"{prefix}h.*.{at.name}", at.part, at.turned) for ours, at in BLOCK.items()},
    }


def _describe(config: Config) -> Described:
    read = Reader(config)
    read.only(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    width = read.whole("n_embd")
    sizes = shape(
        read,
        vocab_size=read.whole("vocab_size"),
        width=width,
        depth=read.whole("n_layer"),
        heads=read.whole("n_head"),
        hidden=read.whole("n_inner", 4 * width),
        max_length=read.whole("n_positions"),
        norm="layer",
        norm_eps=read.real("layer_norm_epsilon", 1e-5),
        mlp="plain",
        activation=read.choice("activation_function", ACTIVATIONS, "gelu_new"),
        position="learned",
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tied=read.flag("tie_word_embeddings", True),
    )
    return autoregressive(read, sizes)


FAMILY = Family(
    name="gpt2",
    recognise=lambda config, keys: config.get("model_type") == "gpt2",
    describe=_describe,
    names=names,
    inert=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    models="GPT-2",
    source="transformers, GPT2LMHeadModel",
    checked="logits of transformers 5.24, tiny random weights: causal, padded, cached, all visible",
)
