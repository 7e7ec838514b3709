"""RADD: SEDD's network without its noise level, which says log-probabilities of the clean tokens.

Source: Ou et al. 2024, arXiv:2406.03736; layout: `RADD` of ML-GSAI/RADD, model/transformer.py (its norms have a bias).
"""

from collections.abc import Collection

from unmask.base.vocab import Traits
from unmask.models.config import Reader, vocab
from unmask.models.families.mdlm import INERT, dit_shape, names
from unmask.models.families.sedd import nested
from unmask.models.family import Config, Described, Family


def _recognise(config: Config, keys: Collection[str]) -> bool:
    return nested(config, keys) and not any(key.startswith("sigma_map.") for key in keys)


def _describe(config: Config) -> Described:
    read = Reader(config)
    model, tokens = read.inside("model"), read.whole("tokens")
    model.only(type="ddit_wot")
    told = dit_shape(
        model,
        vocab_size=tokens + 1,
        width=model.whole("hidden_size"),
        depth=model.whole("n_blocks"),
        heads=model.whole("n_heads"),
        max_length=model.whole("length"),
        norm="layer",
    )
    return Described(
        shape=told,
        vocab=vocab(read, told.vocab_size, mask=tokens),
        traits=Traits(),
        defaults={"decoder": "mdlm"},
    )


FAMILY = Family(
    name="radd",
    recognise=_recognise,
    describe=_describe,
    names=names,
    inert=(INERT,),
    models="RADD t-DCE and lambda-DCE",
    source="ML-GSAI/RADD, model/transformer.py",
    checked="logits and log-probabilities of the published network on random weights in float32: full, batch, all "
    "masks; not compared with published weights",
)
