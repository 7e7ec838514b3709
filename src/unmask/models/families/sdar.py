"""SDAR and TraDo: Qwen3 read block by block.

Source: Cheng et al. 2025, arXiv:2510.06303; TraDo: Wang et al. 2025, arXiv:2509.06949; layout: `SDARForCausalLM` of
the published code.

I-DLM (Yu et al. 2026, arXiv:2604.11035) says the same `model_type` and tells itself apart by no key, but reads causally
and speaks of the next token: declare that (`unmask.models.profile`).
"""

from unmask.base.vocab import Traits
from unmask.models.backbone import Shape
from unmask.models.config import Reader, llama_shape, vocab
from unmask.models.families import llama
from unmask.models.families.qwen import SWITCHES
from unmask.models.family import Config, Described, Family


def blockwise(read: Reader, shape: Shape) -> Described:
    """A model that reads block by block, as SDAR's do."""
    return Described(
        shape=shape,
        vocab=vocab(read, shape.vocab_size, mask=read.whole("mask_token_id", 151669)),
        traits=Traits(sees="blocks", block=read.whole("block_size", 4)),
        defaults={"decoder": "sdar"},
    )


def _describe(config: Config) -> Described:
    read = Reader(config)
    return blockwise(read, llama_shape(read, **SWITCHES["qwen3"]))


FAMILY = Family(
    name="sdar",
    recognise=lambda config, keys: config.get("model_type") == "sdar",
    describe=_describe,
    names=llama.names,
    models="SDAR 1.7B, 4B, 8B; TraDo 4B, 8B; DiRL 8B",
    source="JetAstra/SDAR, modeling_sdar.py",
    checked="logits of the published model class: block-causal, full, cached; token-identical with its sampler",
)
