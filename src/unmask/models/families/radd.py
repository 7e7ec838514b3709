"""RADD: SEDD's network without its noise level, which says log-probabilities of the clean tokens.

Source: Ou et al. 2024, arXiv:2406.03736; layout: `RADD` of ML-GSAI/RADD, model/transformer.py (its norms have a bias).
"""

from collections.abc import Collection

from unmask.base.vocab import Traits
from unmask.models.config import Reader, vocab
from unmask.models.families.mdlm import INERT, names
from unmask.models.families.sedd import nested, nested_shape
from unmask.models.family import Config, Described, Family


def _recognise(config: Config, keys: Collection[str]) -> bool:
    return nested(config, keys) and not any(key.startswith("sigma_map.") for key in keys)


def _describe(config: Config) -> Described:
    read = Reader(config)
    read.inside("model").only(type="ddit_wot")
    told = nested_shape(read, norm="layer")
    return Described(
        shape=told,
        vocab=vocab(read, told.vocab_size, mask=told.vocab_size - 1),
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
