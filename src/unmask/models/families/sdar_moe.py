"""SDAR-30B-A3B: Qwen3-MoE read block by block.

Source: Cheng et al. 2025, arXiv:2510.06303; layout: JetEngine, jetengine/models/sdar_moe.py, which reads Qwen3-MoE's
names and sizes.
"""

from unmask.base.vocab import Traits
from unmask.models.config import Reader, vocab
from unmask.models.families import qwen3_moe
from unmask.models.family import Config, Described, Family


def _describe(config: Config) -> Described:
    read = Reader(config)
    shape = qwen3_moe.moe_shape(read)
    return Described(
        shape=shape,
        vocab=vocab(read, shape.vocab_size, mask=read.whole("mask_token_id", 151669)),
        traits=Traits(sees="blocks", block=read.whole("block_size", 4)),
        defaults={"decoder": "sdar"},
    )


FAMILY = Family(
    name="sdar_moe",
    recognise=lambda config, keys: config.get("model_type") == "sdar_moe",
    describe=_describe,
    names=lambda config, keys: qwen3_moe.NAMES,
    models="SDAR-30B-A3B Chat and Sci",
    source="Labman42/JetEngine, sdar_moe.py",
    checked="not compared with published weights or code; checked through qwen3_moe (the same network) and sdar",
)
