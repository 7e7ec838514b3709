"""LLaDA-MoE: OLMoE's layout with normed heads, read in both directions.

Source: Zhu et al. 2025, arXiv:2509.24389; layout: `LLaDAMoEModelLM` of the published remote code. Its `model_type` is
"llada", as that of the dense LLaDA: what tells them apart is the keys.
"""

from collections.abc import Collection

from unmask.base.errors import BadCheckpoint, Unsupported
from unmask.base.vocab import Traits
from unmask.models.config import Reader, experts, llama_shape, vocab
from unmask.models.families.qwen3_moe import NAMES
from unmask.models.family import Config, Described, Family


def _recognise(config: Config, keys: Collection[str]) -> bool:
    return config.get("model_type") in ("llada", "lladamoe") and "num_experts" in config


def _dense(read: Reader) -> int:
    """How many leading layers have no experts."""
    frequency, depth = read.config.get("moe_layer_freq", 1), read.whole("num_hidden_layers")
    if frequency in (None, 1):
        return 0
    if not isinstance(frequency, list) or len(frequency) != depth:
        raise BadCheckpoint(f"{read.where}: moe_layer_freq must be 1 or a list of {depth}, got {frequency!r}")
    dense = frequency.index(1) if 1 in frequency else depth
    if frequency != [0] * dense + [1] * (depth - dense):
        raise Unsupported(f"{read.where}: moe_layer_freq is {frequency}; this code only does zeros and then ones")
    return dense


def _describe(config: Config) -> Described:
    read = Reader(config)
    read.only(
        clip_qkv=None,
        moe_router_enable_expert_bias=False,
        moe_router_score_function="softmax",
        norm_topk_prob=False,
        partial_rotary_factor=1,
        routed_scaling_factor=1,
        router_num_group=None,
        router_topk_group=None,
        shared_expert_intermediate_size=None,
    )
    inner = read.whole("expert_intermediate_size")
    mixture = experts(
        read,
        num=read.whole("num_experts"),
        chosen=read.whole("num_experts_per_tok"),
        hidden=inner,
        dense=_dense(read),
    )
    hidden = read.whole("dense_intermediate_size", inner)
    shape = llama_shape(read, hidden=hidden, experts=mixture, qk_norm=read.flag("qk_layernorm", False))
    return Described(
        shape=shape,
        vocab=vocab(read, shape.vocab_size, mask=read.whole("mask_token_id", 156895)),
        traits=Traits(),
        defaults={"decoder": "llada"},
    )


FAMILY = Family(
    name="llada_moe",
    recognise=_recognise,
    describe=_describe,
    names=lambda config, keys: NAMES,
    models="LLaDA-MoE-7B-A1B Base and Instruct",
    source="ZHZisZZ/dllm, modeling_lladamoe.py; inclusionAI/dInfer, configuration_lladamoe.py",
    checked="logits of the published model class: full, batch, padded",
)
