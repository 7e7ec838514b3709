"""Estimates of -log p(text) under a network, each with its standard error and with what it is an estimate of.

A masked model has no single likelihood: it has one for every order of writing. The mean over orders bounds -log p of
the model that draws its order at random ("elbo", "exact-k", "any-order" estimate this one number); one fixed order has
an exact likelihood of its own ("left-to-right"). A model that writes in blocks has both per block, each given the clean
blocks before it.

Source: the bound as an integral over mask probabilities: Sahoo et al. 2024, MDLM, arXiv:2406.07524, eq. 10; as a mean
over counts: Nie et al. 2025, LLaDA, arXiv:2502.09992, eq. 6, Ou et al. 2024, RADD, arXiv:2406.03736, eq. 3.9; over
orders: Uria et al. 2014, arXiv:1310.1757, Hoogeboom et al. 2022, arXiv:2110.02037.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.base import seeds
from unmask.base.attend import Attend
from unmask.base.batch import Batch
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput, UnknownName, Unsupported
from unmask.noise import schedules, times
from unmask.noise.absorb import NO_UNIT, Units, absorb, levels, ranks
from unmask.objectives.fit import needs
from unmask.objectives.loss import Noised, chunked_nll
from unmask.objectives.streams import read

ESTIMATORS = {
    "elbo": "the bound, as an integral over mask probabilities",
    "exact-k": "the same bound, as a mean over how many positions are masked; far less variance",
    "any-order": "the same bound, as a mean over orders of writing; each sample costs a forward per position",
    "left-to-right": "exact, for writing in order with the right side masked; a forward per position",
    "ar": "exact, for models that write token by token; one forward",
}
_SCHEDULE = schedules.TABLE["cosine"]  # the bound is the same under all; a linear one has infinite variance near t = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is known of -log p.

    Args:
        nats: the estimate.
        stderr: its standard error, nats. 0 where nothing was drawn, nan for a single sample.
        forwards: rows that went through the network.
        bound: whether the expected value is an upper bound of -log p rather than its exact value.
    """

    nats: float
    stderr: float
    forwards: int
    bound: bool


@torch.inference_mode()
def likelihood(
    model: Denoiser,
    tokens: Tensor,
    asked: Tensor,
    estimator: str,
    *,
    samples: int = 128,
    seed: int = 0,
    rows: int = 32,
    block: int | None = None,
) -> Estimate:
    """Estimate -log p(tokens where asked | tokens elsewhere).

    Args:
        model: a network that speaks of clean tokens.
        tokens: (L,) ids.
        asked: (L,) bool, what is scored; the rest is given, on both sides.
        estimator: a key of `ESTIMATORS`.
        samples: draws; at least 1. Estimators that are exact take none.
        seed: of the draws.
        rows: rows of one forward.
        block: read in blocks of this many positions, which the model must have been trained for; None is its own way.
    Raises:
        UnknownName: no such estimator. BadInput: no samples, nothing asked, or masks in the text.
        Unsupported: an estimator or a block that does not fit the model.
    """
    if estimator not in ESTIMATORS:
        raise UnknownName("estimator", estimator, ESTIMATORS)
    if samples < 1 or rows < 1:
        raise BadInput(f"samples and rows are whole numbers from 1, not {samples} and {rows}")
    if not bool(asked.any()):
        raise BadInput("nothing is asked about; give a text of one token or more")
    size = _block(model, estimator, block)
    if model.traits.sees == "left":
        return _causal(model, tokens, asked)
    mask = model.vocab.mask
    if mask is None:
        raise Unsupported("this model has no mask token, so its likelihood can't be estimated by masking")
    if bool((tokens == mask).any()):
        raise BadInput(f"the text holds the mask token (id {mask}); there is nothing to compare its belief with")
    draw = _Draw(tokens, asked, size, estimator, samples, seed)
    found = []
    for index in torch.arange(draw.rows, device=tokens.device).split(rows):
        noisy, weight = draw.ask(index, mask)
        found.append(_nats(model, tokens, noisy, weight, draw.block).new_zeros(len(index), draw.num_units).index_add_(1, draw.unit_of, _last(model)))
    raise AssertionError
