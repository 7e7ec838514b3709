"""BD3-LM: MDLM's network read block by block, with or without its noise level.

Source: Arriola et al. 2025, arXiv:2503.09573; layout: `BD3LM` of kuleshov-group/bd3lms, models/hf/modeling_bd3lm.py.
"""

from unmask.base.errors import Unsupported
from unmask.models.config import Reader, vocab
from unmask.models.families.mdlm import INERT, clocked, hub_shape, names
from unmask.models.family import Config, Described, Family


def _describe(config: Config) -> Described:
    read = Reader(config)
    read.only(causal=False)
    told_of = read.flag("adaln", True)
    if read.flag("time_conditioning", False) and not told_of:
        raise Unsupported(f"{read.where}: time_conditioning without adaln; nothing would read the time")
    told = hub_shape(read, condition=read.whole("cond_dim") if told_of else 0)
    blocks = {"sees": "blocks", "block": read.whole("block_size")} if read.flag("cross_attn", True) else {}
    return Described(
        shape=told,
        vocab=vocab(read, told.vocab_size, mask=told.vocab_size - 1),
        traits=clocked(told, **blocks),
        defaults={"decoder": "bd3" if blocks and told.sigma == "zero" else "mdlm"},  # bd3 keeps keys and values
    )


FAMILY = Family(
    name="bd3lm",
    recognise=lambda config, keys: config.get("model_type") == "bd3lm",
    describe=_describe,
    names=names,
    inert=(INERT, r"sampling_eps_(min|max)"),
    models="BD3-LM on OpenWebText, block sizes 4, 8 and 16, and the model they were tuned from",
    source="kuleshov-group/bd3lms, models/hf/modeling_bd3lm.py",
    checked="logits of the published model class on random weights: the training pass over [noised | clean], block by "
    "block, cached, with and without adaLN; not compared with published weights",
)
