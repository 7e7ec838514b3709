"""LLaDA: a Llama in OLMo's dress, read in both directions.

Source: Nie et al. 2025, arXiv:2502.09992; LLaDA 1.5: Zhu et al. 2025, arXiv:2505.19223; layout: `LLaDAModelLM` of the
published remote code. `model_type` is "llada" for the mixture of experts too: what tells them apart is the keys.
"""

from collections.abc import Collection

from unmask.base.vocab import Traits
from unmask.models.config import ACTIVATIONS, Reader, shape, vocab
from unmask.models.family import Config, Described, Family
from unmask.models.weights import At, Names

BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "post_attention_layernorm": "ff_norm",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
"""One layer's names."""
NAMES: Names = {
    "embed_tokens": "model.transformer.wte",
    "norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
    **{f"layers.*.{ours}": At(f"model.transformer.blocks.*.{stored}") for ours, stored in BLOCK.items()},
}


def _recognise(config: Config, keys: Collection[str]) -> bool:
    return config.get("model_type") == "llada" and "d_model" in config


def _describe(config: Config) -> Described:
    read = Reader(config)
    read.only(
        alibi=False,
        attention_layer_norm=False,
        bias_for_layer_norm=False,
        block_group_size=1,
        block_type="llama",
        input_emb_norm=False,
        layer_norm_type="rms",
        layer_norm_with_affine=True,
        rope=True,
        scale_logits=False,
        multi_query_attention=False,
    )
    width, heads = read.whole("d_model"), read.whole("n_heads")
    biased = read.flag("include_bias", False)
    sizes = shape(
        read,
        vocab_size=read.whole("embedding_size", read.whole("vocab_size")),
        width=width,
        depth=read.whole("n_layers"),
        heads=heads,
        kv_heads=read.whole("n_kv_heads", heads),
        hidden=read.whole("mlp_hidden_size", read.whole("mlp_ratio", 4) * width),
        max_length=read.whole("max_sequence_length"),
        norm_eps=read.real("rms_norm_eps", 1e-5),
        activation=read.choice("activation_type", ACTIVATIONS, "silu"),
        rope_theta=read.real("rope_theta", 10000.0),
        qkv_bias=read.flag("include_qkv_bias", False) or biased,
        output_bias=biased,
        mlp_bias=biased,
        tied=read.flag("weight_tying", False),
    )
    return Described(
        shape=sizes,
        vocab=vocab(read, sizes.vocab_size, mask=read.whole("mask_token_id")),
        traits=Traits(),
        defaults={"decoder": "llada"},
    )


FAMILY = Family(
    name="llada",
    recognise=_recognise,
    describe=_describe,
    names=lambda config, keys: NAMES,
    models="LLaDA-8B Base and Instruct, LLaDA-1.5",
    source="published remote code of LLaDA, LLaDAModelLM",
    checked="logits of the published model class: full, batch, padded; token-identical with its samplers",
)
