"""SDAR-30B-A3B: Qwen3-MoE read block by block.

Source: Cheng et al. 2025, arXiv:2510.06303; layout: JetEngine, jetengine/models/sdar_moe.py, which reads Qwen3-MoE's
names and sizes.
"""

from unmask.models.config import Reader
from unmask.models.families import qwen3_moe, sdar
from unmask.models.family import Config, Described, Family


def _describe(config: Config) -> Described:
    read = Reader(config)
    return sdar.blockwise(read, qwen3_moe.moe_shape(read))


FAMILY = Family(
    name="sdar_moe",
    recognise=lambda config, keys: config.get("model_type") == "sdar_moe",
    describe=_describe,
    names=lambda config, keys: qwen3_moe.NAMES,
    models="SDAR-30B-A3B Chat and Sci",
    source="Labman42/JetEngine, sdar_moe.py",
    checked="not compared with published weights or code; checked through qwen3_moe (the same network) and sdar",
)
