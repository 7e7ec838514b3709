"""Llama and what shares its layout (SmolLM2, Mistral without windows): autoregressive.

Source: Touvron et al. 2023, arXiv:2302.13971; layout: `LlamaForCausalLM` of transformers.
"""

from collections.abc import Collection

from unmask.models.config import Reader, autoregressive, llama_shape
from unmask.models.family import Config, Described, Family
from unmask.models.weights import Names

NAMES: Names = {
    "embed_tokens": "model.embed_tokens",
    "layers.*": "model.layers.*",
    "norm": "model.norm",
    "lm_head": "lm_head",
}
"""Llama's names are ours, under a prefix."""


def names(config: Config, keys: Collection[str]) -> Names:
    """Where parameters are stored; some files of descendants leave the prefix out."""
    if any(key.startswith("model.") for key in keys) or not keys:
        return NAMES
    return {path: str(stored).removeprefix("model.") for path, stored in NAMES.items()}


def _describe(config: Config) -> Described:
    read = Reader(config)
    shape = llama_shape(read)
    return autoregressive(read, shape)


FAMILY = Family(
    name="llama",
    recognise=lambda config, keys: config.get("model_type") == "llama",
    describe=_describe,
    names=names,
    inert=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    models="Llama 2 and 3, SmolLM2; once declared (`unmask.models.profile`), DiffuLLaMA-7B and Stable-DiffCoder-8B",
    source="transformers, LlamaForCausalLM",
    checked="logits of transformers 5.24, tiny random weights: causal, padded, cached, all visible; llama3 rope",
)
