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
    units = _units(asked, size, 1)
    ordered, exact = estimator in ("any-order", "left-to-right", "ar"), _exact(estimator, units)
    steps, draws = int(units.size.max()) if ordered else 1, 1 if exact else samples
    share = None if ordered else _shares(len(units.size), draws, seed).to(tokens.device)
    found = []
    for index in torch.arange(draws * steps, device=tokens.device).split(rows):
        copies = _units(asked, size, len(index))
        numbers = _numbers(len(tokens), index // steps, seed, in_place=exact and ordered)
        if share is None:
            hidden, weight = _by_order(copies, numbers, index % steps)
        else:
            hidden, weight = _by_level(copies, numbers, share[index], exact_k=estimator == "exact-k")
        nats = _nats(model, tokens, tokens.masked_fill(hidden, mask), weight, size)
        found.append(nats.new_zeros(len(index), len(units.size)).index_add(1, units.index[0, asked], nats[:, asked]))
    each = torch.cat(found).view(draws, steps, -1).sum(1)
    return Estimate(
        nats=float(each.sum() / draws),
        stderr=0.0 if exact else _stderr(each, share),
        forwards=draws * steps,
        bound=not exact,
    )


def _block(model: Denoiser, estimator: str, block: int | None) -> int | None:
    """Positions that are written together; None is the whole text. Refuses what does not fit the model."""
    traits = model.traits
    if traits.sees == "left":
        needs("a likelihood", model, sees=("left",), speaks=("next",))
        if estimator != "ar" or block not in (None, 1):
            raise Unsupported("a model that sees 'left' writes token by token; use the estimator ar, without a block")
        return 1
    needs("a likelihood", model, sees=("all", "blocks"))
    known = set(traits.reads)
    if traits.sees == "blocks" and traits.block is not None:
        known.add(traits.block)
    if estimator == "ar":
        block = 1 if block is None else block
        if block != 1 or 1 not in known:
            raise Unsupported("the estimator ar is for models that read blocks of 1; use exact-k or left-to-right")
    if block is not None and block not in known:
        sizes = ", ".join(map(str, sorted(known))) or "none"
        raise Unsupported(f"this model was not trained to read in blocks of {block}; block sizes it knows: {sizes}")
    return traits.block if block is None and traits.sees == "blocks" else block


def _exact(estimator: str, units: Units) -> bool:
    """Whether the expectation is a likelihood; the bound over units of one position is one too."""
    return estimator in ("left-to-right", "ar") or int(units.size.max()) == 1


def _units(asked: Tensor, block: int | None, rows: int) -> Units:
    """The units of some copies of the text."""
    place = torch.arange(len(asked), device=asked.device).expand(rows, -1)
    return Units.of(torch.zeros_like(place), place, asked.expand(rows, -1), block)


def _shares(units: int, draws: int, seed: int) -> Tensor:
    """(draws, units) numbers in (0, 1): the draws of each unit share it out evenly, in an order of its own."""
    draw, unit = torch.arange(draws)[:, None], torch.arange(units)
    rank = seeds.uniform(seeds.key(seed, "score-stratum", draw, unit)).argsort(0).argsort(0)
    return (rank + seeds.uniform(seeds.key(seed, "score-level", draw, unit))) / draws


def _numbers(length: int, draw: Tensor, seed: int, *, in_place: bool) -> Tensor:
    """(R, L) float64, what positions are ranked by: their place, or numbers of their draw."""
    place = torch.arange(length, device=draw.device)
    if in_place:
        return place.double().expand(len(draw), -1)
    return seeds.uniform(seeds.key(seed, "score-position", draw[:, None], place))


def _by_level(units: Units, numbers: Tensor, share: Tensor, *, exact_k: bool) -> tuple[Tensor, Tensor]:
    """Which positions are hidden, and the weights of their nats, for noise levels from `share` (R, units)."""
    law = times.Times(stratified=True, counts=exact_k)
    level = levels(units.size, law, _SCHEDULE, share.flatten())
    hidden = absorb(units, level, numbers)
    return hidden, units.spread(level.weight).masked_fill(~hidden, 0)


def _by_order(units: Units, numbers: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """The chain rule: hidden is what is written at `turn` (R,) or later, asked about what is written then."""
    rank, there = ranks(units, numbers), units.index != NO_UNIT
    return there & (rank >= turn[:, None]), (there & (rank == turn[:, None])).double()


def _nats(model: Denoiser, tokens: Tensor, noisy: Tensor, weight: Tensor, block: int | None) -> Tensor:
    """(R, L) weighted nats, float64."""
    place = torch.arange(len(tokens), device=tokens.device).expand_as(noisy)
    batch = Batch(tokens=tokens.expand_as(noisy), documents=torch.zeros_like(place), places=place, samples=place[:, 0])
    noised = Noised(batch=batch, noisy=noisy, weight=weight, counts=weight > 0, block=block)
    features, slots = read(model, noised)
    r, i = (weight > 0).nonzero(as_tuple=True)
    nats = torch.zeros_like(weight)
    nats[r, i] = chunked_nll(model, features[r, slots[r, i]], tokens[i]).double() * weight[r, i]
    return nats


def _stderr(each: Tensor, share: Tensor | None) -> float:
    """The standard error of the mean over draws of (draws, units) nats.

    Draws that share out the levels are closer to the mean than independent ones: what counts is how neighbours in level
    differ. Units are independent of each other.

    Source: successive differences in systematic samples: Wolter 2007, "Introduction to variance estimation", sec. 8.2.
    """
    draws = len(each)
    if draws == 1:
        return float("nan")
    if share is None:
        return float(each.sum(1).std() / draws**0.5)
    steps = each.gather(0, share.argsort(0)).diff(dim=0)
    return float((steps.square().sum() / (2 * draws * (draws - 1))).sqrt())


def _causal(model: Denoiser, tokens: Tensor, asked: Tensor) -> Estimate:
    """Exact, in one forward of a model that reads left to right."""
    if bool(asked[0]):
        raise BadInput("a model that reads left to right needs a token before the text; give a begin of text, or ids")
    place = torch.arange(len(tokens), device=tokens.device)[None]
    features = model.read(tokens[None], positions=place, attend=Attend(kind="causal"))
    at = asked.nonzero()[:, 0]
    nats = chunked_nll(model, features[0, at - 1], tokens[at]).double()
    return Estimate(nats=float(nats.sum()), stderr=0.0, forwards=1, bound=False)
