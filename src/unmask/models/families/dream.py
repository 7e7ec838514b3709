"""Dream, Dream-Coder and DiffuCoder: Qwen2.5 read in both directions, whose logits still speak of the next token.

DreamOn is one of them that learnt a token that makes room for another one, and to take room away where it says the end
of the text.

Source: Ye et al. 2025, arXiv:2508.15487; Gong et al. 2025, DiffuCoder, arXiv:2506.20639; Wu et al. 2026, DreamOn,
arXiv:2602.01326; layout: `DreamModel` of the published remote code.
"""

from unmask.base.vocab import Traits
from unmask.models.config import Reader, llama_shape, vocab
from unmask.models.families import llama
from unmask.models.families.qwen import SWITCHES
from unmask.models.family import Config, Described, Family


def _describe(config: Config) -> Described:
    read = Reader(config)
    read.only(use_mrope=False)
    shape = llama_shape(read, **SWITCHES["qwen2"])
    expand = config.get("expand_token_id")
    delete = None if expand is None else config.get("eos_token_id")
    return Described(
        shape=shape,
        vocab=vocab(read, shape.vocab_size, mask=read.whole("mask_token_id"), expand=expand, delete=delete),
        traits=Traits(sees="all", speaks="next"),
        defaults={"decoder": "dream" if expand is None else "dreamon"},
    )


FAMILY = Family(
    name="dream",
    recognise=lambda config, keys: str(config.get("model_type")).lower() == "dream",
    describe=_describe,
    names=llama.names,
    models="Dream-7B, Dream-Coder-7B, DiffuCoder-7B, DreamOn-7B",
    source="published remote code of Dream, DreamModel",
    checked="logits of the published model class; token-identical with its sampler; DreamOn by its paper only",
)
