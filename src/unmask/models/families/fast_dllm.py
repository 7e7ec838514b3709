"""Fast-dLLM v2: Qwen2.5 read block by block, whose logits still speak of the next token.

Source: Wu et al. 2025, arXiv:2509.26328; layout: `Fast_dLLM_QwenForCausalLM` of the published remote code.

Its sampler writes a block in sub-blocks of 8, from left to right, each by threshold 0.9. The default decoder here takes
the whole block by the same threshold.
"""

from unmask.base.vocab import Traits
from unmask.models.config import Reader, llama_shape, vocab
from unmask.models.families import llama
from unmask.models.families.qwen import SWITCHES
from unmask.models.family import Config, Described, Family


def _describe(config: Config) -> Described:
    read = Reader(config)
    shape = llama_shape(read, **SWITCHES["qwen2"])
    return Described(
        shape=shape,
        vocab=vocab(read, shape.vocab_size, mask=read.whole("mask_token_id", 151665)),
        traits=Traits(sees="blocks", block=read.whole("bd_size", 32), speaks="next"),
        defaults={"decoder": "sdar", "threshold": 0.9},
    )


FAMILY = Family(
    name="fast_dllm_v2",
    recognise=lambda config, keys: str(config.get("model_type")).lower() == "fast_dllm_qwen",
    describe=_describe,
    names=llama.names,
    models="Fast-dLLM v2 1.5B and 7B",
    source="published remote code of Fast-dLLM v2, modeling.py and configuration.py",
    checked="not compared with published weights; checked through qwen2 (the same network) under its block mask",
)
