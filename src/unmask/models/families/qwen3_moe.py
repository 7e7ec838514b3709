"""Qwen3-MoE: Qwen3 with a mixture of experts in the place of its MLP; autoregressive.

Source: Yang et al. 2025, arXiv:2505.09388; layout: `Qwen3MoeForCausalLM` of transformers.
"""

from unmask.base.errors import Unsupported
from unmask.models.backbone import Shape
from unmask.models.config import Reader, autoregressive, experts, llama_shape
from unmask.models.families import llama
from unmask.models.families.qwen import SWITCHES
from unmask.models.family import Config, Described, Family
from unmask.models.weights import Names

EACH: Names = {
    f"layers.*.mlp.experts.{name}": f"model.layers.*.mlp.experts.+.{name}.weight"
    for name in ("gate_proj", "up_proj", "down_proj")
}
"""Experts that are stored one by one."""
NAMES: Names = {**llama.NAMES, **EACH}


def moe_shape(read: Reader) -> Shape:
    """The sizes of Qwen3-MoE and its descendants."""
    read.only(decoder_sparse_step=1)
    plain = read.config.get("mlp_only_layers") or []
    if not isinstance(plain, list) or plain != list(range(len(plain))):
        raise Unsupported(f"{read.where}: mlp_only_layers is {plain!r}; this code only does leading layers, as [0, 1]")
    count = "num_local_experts" if "num_local_experts" in read else "num_experts"  # transformers 5 writes the first
    mixture = experts(
        read,
        num=read.whole(count),
        chosen=read.whole("num_experts_per_tok"),
        hidden=read.whole("moe_intermediate_size"),
        dense=len(plain),
        normalise=read.flag("norm_topk_prob"),
    )
    return llama_shape(read, experts=mixture, **SWITCHES["qwen3"])


def _describe(config: Config) -> Described:
    read = Reader(config)
    shape = moe_shape(read)
    return autoregressive(read, shape)


FAMILY = Family(
    name="qwen3_moe",
    recognise=lambda config, keys: config.get("model_type") == "qwen3_moe",
    describe=_describe,
    names=lambda config, keys: NAMES,
    models="Qwen3-30B-A3B, Qwen3-Coder-30B-A3B",
    source="transformers, Qwen3MoeForCausalLM",
    checked="logits of transformers 5.24, tiny random weights: causal, all visible",
)
