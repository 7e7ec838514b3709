"""Qwen2, Qwen2.5 and Qwen3: Llama with biases on queries, keys and values (2), or with normed heads instead (3).

Source: Yang et al. 2024, arXiv:2407.10671 and 2025, arXiv:2505.09388; layout: transformers.
"""

from functools import partial

from unmask.models.config import Reader, autoregressive, llama_shape
from unmask.models.families import llama
from unmask.models.family import Config, Described, Family

SWITCHES = {
    "qwen2": {"qkv_bias": True, "output_bias": False},
    "qwen3": {"qk_norm": True},
}
"""What sets them apart from Llama."""


def _describe(kind: str, config: Config) -> Described:
    read = Reader(config)
    shape = llama_shape(read, **SWITCHES[kind])
    return autoregressive(read, shape)


def _is(kind: str, config: Config, keys: object) -> bool:
    return config.get("model_type") == kind


QWEN2, QWEN3 = (
    Family(
        name=kind,
        recognise=partial(_is, kind),
        describe=partial(_describe, kind),
        names=llama.names,
        models=models,
        source=f"transformers, {kind.title()}ForCausalLM",
        checked="logits of transformers 5.24, tiny random weights: causal, padded, cached, all visible",
    )
    for kind, models in (("qwen2", "Qwen2, Qwen2.5, Qwen2.5-Coder"), ("qwen3", "Qwen3"))
)
