"""Nemotron-Labs-Diffusion: Ministral 3 with three ways of reading; read here as autoregressive.

Source: NVIDIA 2026, arXiv:2607.05722; layout: NVIDIA-NeMo/Megatron-Bridge, nemotron_labs_diffusion_bridge.py.

Its own block decoding reads what is written causally and the block in both directions, and takes the first token of a
block from the causal pass; no value of `Traits` says that. Its autoregressive way is one of the published three, and
that is what the traits say; logits under attend="full" or a given mask are those of the other ways.
"""

from unmask.models.config import Reader, autoregressive, llama_shape
from unmask.models.family import Config, Described, Family
from unmask.models.weights import Names

NAMES: Names = {
    "embed_tokens": "encoder.embed_tokens",
    "layers.*": "encoder.layers.*",
    "norm": "encoder.norm",
    "lm_head": "diffusion_head",
}


def _length(read: Reader) -> int:
    """Positions that a row may have. Behind the first training's last one Ministral 3 stretches queries; we don't."""
    length, told = read.whole("max_position_embeddings"), read.inside("rope_parameters")
    if not told.real("llama_4_scaling_beta", 0.0):
        return length
    return min(length, told.whole("original_max_position_embeddings"))


def _describe(config: Config) -> Described:
    read = Reader(config)
    read.only(sliding_window=None)
    shape = llama_shape(read, max_length=_length(read))
    return autoregressive(read, shape)


FAMILY = Family(
    name="nemotron_labs_diffusion",
    recognise=lambda config, keys: config.get("model_type") == "nemotron_labs_diffusion",
    describe=_describe,
    names=lambda config, keys: NAMES,
    inert=(r"encoder\.rotary_emb\.inv_freq",),
    models="Nemotron-Labs-Diffusion 3B, 8B, 14B, autoregressive only",
    source="NVIDIA-NeMo/Megatron-Bridge, nemotron_labs_diffusion_bridge.py and nemotron_labs_diffusion_attention.py",
    checked="not compared with published weights; checked through transformers' Ministral 3 (the same network)",
)
