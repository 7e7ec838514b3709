"""SEDD: the diffusion transformer of words that says by how much likelier each token is than the one that stands there.

Source: Lou et al. 2024, arXiv:2310.16834; layout: `SEDD` of louaaron/Score-Entropy-Discrete-Diffusion,
model/transformer.py. Its config.json has the sections of a training configuration and no `model_type`; so has RADD's,
and what tells them apart is that RADD stores no map of the noise level.
"""

from collections.abc import Collection
from typing import Any

from unmask.base.vocab import Traits
from unmask.models.backbone import Shape
from unmask.models.config import Reader, vocab
from unmask.models.families.mdlm import INERT, LOG_LINEAR, dit_shape, names
from unmask.models.family import Config, Described, Family

DECODERS = {"euler": "sedd-euler", "analytic": "sedd-analytic"}
"""Presets by the published names of predictors."""
SCHEDULES = {"loglinear": "log-linear", "geometric": "geometric"}


def nested(config: Config, keys: Collection[str]) -> bool:
    """Whether this is a training configuration beside such a network."""
    return "model_type" not in config and isinstance(config.get("model"), dict) and "vocab_embed.embedding" in keys


def _recognise(config: Config, keys: Collection[str]) -> bool:
    return nested(config, keys) and "sigma_map.mlp.0.weight" in keys


def nested_shape(read: Reader, **more: Any) -> Shape:
    """The shape under the keys of a training configuration; the mask is one id more than its tokens."""
    model = read.inside("model")
    return dit_shape(
        model,
        vocab_size=read.whole("tokens") + 1,
        width=model.whole("hidden_size"),
        depth=model.whole("n_blocks"),
        heads=model.whole("n_heads"),
        max_length=model.whole("length"),
        **more,
    )


def _describe(config: Config) -> Described:
    read = Reader(config)
    model, noise = read.inside("model"), read.inside("noise")
    read.inside("graph").only(type="absorb")
    model.only(type="ddit")
    told = nested_shape(
        read,
        condition=model.whole("cond_dim"),
        sigma="used",
        scale_by_sigma=model.flag("scale_by_sigma"),
    )
    schedule = noise.choice("type", SCHEDULES)
    sigmas = LOG_LINEAR if schedule == "log-linear" else (noise.real("sigma_min"), noise.real("sigma_max"))
    return Described(
        shape=told,
        vocab=vocab(read, told.vocab_size, mask=told.vocab_size - 1),
        traits=Traits(says="score", clock=True, schedule=schedule, sigmas=sigmas),
        defaults={"decoder": read.inside("sampling").choice("predictor", DECODERS, "euler")},
    )


FAMILY = Family(
    name="sedd",
    recognise=_recognise,
    describe=_describe,
    names=names,
    inert=(INERT,),
    models="SEDD absorbing, small and medium",
    source="louaaron/Score-Entropy-Discrete-Diffusion, model/transformer.py and noise_lib.py",
    checked="log scores of the published network on random weights in float32, its flash attention written out: full, "
    "batch, all masks, small and large noise; not compared with published weights",
)
