"""DiffuGPT: GPT-2 read in both directions, whose logits still speak of the next token.

Source: Gong et al. 2025, arXiv:2410.17891; layout: `DiscreteDiffusionModel` of HKUNLP/DiffuLLaMA, model.py. What is
masked is an ordinary token in DiffuGPT-S, and a 50258th one in DiffuGPT-M, whose config.json may not count it
(LLaMA-Factory/src/llamafactory/model/loader.py there; its issue 11).

DiffuLLaMA itself is stored as a plain Llama: declare it (`unmask.models.profile`), mask_token_id 811, sees "all".
"""

import dataclasses
from collections.abc import Collection

from unmask.base.vocab import Traits
from unmask.models.config import Reader, vocab
from unmask.models.families import gpt2
from unmask.models.family import Config, Described, Family
from unmask.models.weights import At, Names

GPT2_IDS, MEDIUM = 50257, 1024
"""GPT-2's tokens, and the width of its medium size."""
NAMES: Names = {
    "embed_tokens": "embed_tokens",
    "embed_positions": "denoise_model.wpe",
    "norm": "denoise_model.ln_f",
    "lm_head": "lm_head",
    **{f"layers.*.{ours}": At(f"denoise_model.h.*.{at.name}", at.part, at.turned) for ours, at in gpt2.BLOCK.items()},
}


def _recognise(config: Config, keys: Collection[str]) -> bool:
    return config.get("model_type") == "gpt2" and "denoise_model.wpe.weight" in keys


def _describe(config: Config) -> Described:
    shape = gpt2.FAMILY.describe(config).shape
    if (shape.vocab_size, shape.width) == (GPT2_IDS, MEDIUM):
        shape = dataclasses.replace(shape, vocab_size=GPT2_IDS + 1)
    read, added = Reader(config), shape.vocab_size > GPT2_IDS
    return Described(
        shape=shape,
        vocab=vocab(read, shape.vocab_size, mask=read.whole("mask_token_id", GPT2_IDS if added else 10541)),
        traits=Traits(sees="all", speaks="next"),
        defaults={"decoder": "mdlm", "steps": 64, "temperature": 0.95, "top_p": 0.9},
    )


FAMILY = Family(
    name="diffugpt",
    recognise=_recognise,
    describe=_describe,
    names=lambda config, keys: NAMES,
    inert=(r"denoise_model\.h\.\d+\.attn\.(bias|masked_bias)",),
    models="DiffuGPT-S, DiffuGPT-M",
    source="HKUNLP/DiffuLLaMA, model.py and inf_diffugpt.py",
    checked="not compared with published weights; checked through gpt2 (the same network), all visible",
)
