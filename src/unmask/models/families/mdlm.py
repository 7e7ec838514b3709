"""MDLM: a diffusion transformer of words, whose layers are told of a noise level that is usually held at zero.

Source: Sahoo et al. 2024, arXiv:2406.07524; layout: `DIT` of kuleshov-group/mdlm, models/dit.py, which its published
wrapper calls `backbone`. SEDD, RADD and BD3-LM store the same network.
"""

import math
from collections.abc import Collection
from typing import Any

from unmask.base.vocab import Traits
from unmask.models.backbone import Shape
from unmask.models.config import Reader, shape, vocab
from unmask.models.family import Config, Described, Family
from unmask.models.weights import At, Names

BLOCK: dict[str, At] = {
    "input_layernorm": At("norm1"),
    "self_attn.q_proj": At("attn_qkv", part="q"),
    "self_attn.k_proj": At("attn_qkv", part="k"),
    "self_attn.v_proj": At("attn_qkv", part="v"),
    "self_attn.o_proj": At("attn_out"),
    "post_attention_layernorm": At("norm2"),
    "mlp.up_proj": At("mlp.0"),
    "mlp.down_proj": At("mlp.2"),
    "modulation": At("adaLN_modulation"),
}
"""One layer's names."""
INERT = r"(backbone\.)?rotary_emb\.inv_freq"

LOG_LINEAR = (0.0, -math.log(1e-3))
"""Total noise at both ends of the schedule that SEDD and MDLM were trained under."""


def names(config: Config, keys: Collection[str]) -> Names:
    """Where parameters are stored; some files have a prefix."""
    prefix = "backbone." if any(key.startswith("backbone.") for key in keys) else ""
    return {
        "embed_tokens.weight": f"{prefix}vocab_embed.embedding",
        "embed_sigma.inner": f"{prefix}sigma_map.mlp.0",
        "embed_sigma.outer": f"{prefix}sigma_map.mlp.2",
        "norm": f"{prefix}output_layer.norm_final",
        "modulation": f"{prefix}output_layer.adaLN_modulation",
        "lm_head": f"{prefix}output_layer.linear",
        "head_bias": f"{prefix}output_layer.linear.bias",
        **{f"layers.*.{ours}": At(f"{prefix}blocks.*.{at.name}", at.part) for ours, at in BLOCK.items()},
    }


def dit_shape(read: Reader, **sizes: Any) -> Shape:
    """The shape of this network: `sizes` has vocab_size, width, depth, heads, max_length, and its use of sigma."""
    return shape(
        read,
        hidden=4 * sizes["width"],
        **{"norm": "layer_no_bias", "mlp": "plain", "activation": "gelu_tanh", "mlp_bias": True, **sizes},
        head_bias=True,
        tied=False,
    )


def hub_shape(read: Reader, *, condition: int) -> Shape:
    """The shape under the keys of the published wrappers of MDLM and BD3-LM."""
    return dit_shape(
        read,
        vocab_size=read.whole("vocab_size"),
        width=read.whole("hidden_dim"),
        depth=read.whole("n_blocks"),
        heads=read.whole("n_heads"),
        max_length=read.whole("model_length"),
        condition=condition,
        sigma="used" if read.flag("time_conditioning", False) else "zero",
    )


def clocked(told: Shape, **traits: Any) -> Traits:
    """Traits, with the clock that goes with the shape."""
    return Traits(clock=True, sigmas=LOG_LINEAR, **traits) if told.sigma == "used" else Traits(**traits)


def _describe(config: Config) -> Described:
    read = Reader(config)
    told = hub_shape(read, condition=read.whole("cond_dim"))
    return Described(
        shape=told,
        vocab=vocab(read, told.vocab_size, mask=told.vocab_size - 1),
        traits=clocked(told),
        defaults={"decoder": "mdlm"},
    )


FAMILY = Family(
    name="mdlm",
    recognise=lambda config, keys: config.get("model_type") == "mdlm",
    describe=_describe,
    names=names,
    inert=(INERT,),
    models="MDLM on OpenWebText",
    source="kuleshov-group/mdlm, models/dit.py and diffusion.py",
    checked="logits and log-probabilities of the published network on random weights in float32, its flash attention "
    "written out: full, batch, all masks, with and without time; not compared with published weights",
)
