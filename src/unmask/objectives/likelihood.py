"""Estimates of -log p(text) under a network, each with its standard error and with what it is an estimate of.

A masked model has no single likelihood: it has one for every order of writing. The mean over orders bounds -log p of
the model that draws its order at random ("elbo", "exact-k", "any-order" estimate this one number); one fixed order has
an exact likelihood of its own ("left-to-right"). A model in blocks has both per block.

Source: the bound as an integral over mask probabilities: Sahoo et al. 2024, MDLM, arXiv:2406.07524, eq. 10; as a mean
over counts: Nie et al. 2025, LLaDA, arXiv:2502.09992, eq. 6, Ou et al. 2024, RADD, arXiv:2406.03736, eq. 3.9; over
orders: Uria et al. 2014, arXiv:1310.1757, Hoogeboom et al. 2022, arXiv:2110.02037.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.base import seeds
from unmask.base.attend import Attend
from unmask.base.batch import Batch
from unmask.base.denoiser import Denoiser
from unmask.base.errors import BadInput, UnknownName, Unsupported
from unmask.noise import schedules, times
from unmask.noise.absorb import Units, absorb, levels
from unmask.objectives.block import two_streams
from unmask.objectives.loss import Noised, chunked_nll


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is known of -log p.

    Args:
        nats: the estimate.
        stderr: of it, nats; at most, since samples share strata. 0 where nothing was drawn, nan for one sample.
        forwards: rows that went through the network, in batches.
        bound: whether the expected value is an upper bound of -log p rather than its exact value.
    """

    nats: float
    stderr: float
    forwards: int
    bound: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Rows that a network is asked about: what it is shown, and the weight of each position's nats (0: not asked)."""

    noisy: Tensor
    weight: Tensor


ESTIMATORS = {
    "elbo": "the bound, as an integral over mask probabilities",
    "exact-k": "the same bound, as a mean over how many positions are masked; far less variance",
    "any-order": "the same bound, as a mean over orders of writing; each sample costs a forward per position",
    "left-to-right": "exact, for writing in order with the right side masked; a forward per position",
    "ar": "exact, for models that write token by token; one forward",
}


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
) -> Estimate:
    """Estimate -log p(tokens where asked | tokens elsewhere).

    Args:
        model: a network that speaks of clean tokens.
        tokens: (L,) ids.
        asked: (L,) bool, what is scored; the rest is given.
        estimator: a key of `ESTIMATORS`.
        samples: draws; at least 1.
        seed: of the draws.
        rows: rows of one forward.
    Raises:
        UnknownName: no such estimator. BadInput: no samples, nothing asked, or masks in the text.
        Unsupported: an estimator that does not fit the model.
    """
    if estimator not in ESTIMATORS:
        raise UnknownName("estimator", estimator, ESTIMATORS)
    if samples < 1:
        raise BadInput(f"samples is a whole number from 1, not {samples}")
    if not bool(asked.any()):
        raise BadInput("nothing is asked about; give a text of one token or more")
    block = _block(model, estimator)
    if model.traits.sees == "left":
        return _causal(model, tokens, asked)
    mask = model.vocab.mask
    if mask is None:
        raise Unsupported("this model has no mask token, so its likelihood can't be estimated by masking")
    if bool((tokens == mask).any()):
        raise BadInput(f"the text holds the mask token (id {mask}); there is nothing to compare its belief with")
    row = torch.zeros_like(tokens)[None]
    place = torch.arange(len(tokens), device=tokens.device)[None]
    units = Units.of(row, place, asked[None], block)
    ordered = estimator in ("any-order", "left-to-right", "ar")
    questions: Iterator[Question]
    if ordered:
        draws = samples if estimator == "any-order" else 1
        questions = (_in_order(units, tokens, mask, _order(units, seed, i, estimator)) for i in range(draws))
    else:
        draws = samples
        questions = _noised(units, tokens, mask, estimator, samples, seed, rows)
    values, forwards = [], 0
    for question in questions:
        nats = torch.cat([_nats(model, tokens, q, block) for q in _split(question, rows)])
        forwards += len(nats)
        values.append(nats.sum(0, keepdim=True) if ordered else nats)
    found = torch.cat(values).double()
    error = float(found.std() / len(found) ** 0.5) if draws > 1 else 0.0 if _exact(estimator, units) else float("nan")
    return Estimate(nats=float(found.mean()), stderr=error, forwards=forwards, bound=not _exact(estimator, units))


def _exact(estimator: str, units: Units) -> bool:
    """Whether the estimator's expectation is a likelihood; a bound over units of one position is one too."""
    return estimator in ("left-to-right", "ar") or int(units.size.max()) == 1


def _block(model: Denoiser, estimator: str) -> int | None:
    """Positions that are written together; None is the whole text. Refuses what does not fit the model."""
    traits = model.traits
    if traits.says != "clean" or traits.noise != "absorb" or traits.clock:
        raise Unsupported("these estimators are for networks without a clock that say what hides behind masks")
    if (traits.sees == "left") != (estimator == "ar") and not (estimator == "ar" and 1 in traits.reads):
        fits = "ar" if traits.sees == "left" else "exact-k, elbo, any-order, left-to-right"
        raise Unsupported(f"the estimator {estimator} does not fit a model that sees {traits.sees!r}; use {fits}")
    if traits.speaks == "next" and traits.sees != "left":
        raise Unsupported("likelihoods of masked models that speak of the next token are not supported")
    return 1 if estimator == "ar" else traits.block if traits.sees == "blocks" else None


def _noised(
    units: Units, tokens: Tensor, mask: int, estimator: str, samples: int, seed: int, rows: int
) -> Iterator[Question]:
    """Draws of noise; the samples of each unit share its levels out evenly."""
    law = times.Times(stratified=True, counts=estimator == "exact-k")
    sample, unit = torch.arange(samples)[:, None], torch.arange(len(units.size))
    coins = seeds.uniform(seeds.key(seed, "score-stratum", sample, unit))
    share = (coins.argsort(0).argsort(0) + seeds.uniform(seeds.key(seed, "score-level", sample, unit))) / samples
    position = seeds.uniform(seeds.key(seed, "score-position", sample, torch.arange(len(tokens))))
    for i in range(0, samples, rows):
        noisy, weight = [], []
        for numbers, spots in zip(share[i : i + rows].to(tokens.device), position[i : i + rows], strict=True):
            level = levels(units.size, law, schedules.TABLE["log-linear"], numbers)
            hidden = absorb(units, level, spots[None].to(tokens.device))[0]
            noisy.append(tokens.masked_fill(hidden, mask))
            weight.append(units.spread(level.weight)[0].masked_fill(~hidden, 0))
        yield Question(noisy=torch.stack(noisy), weight=torch.stack(weight))


def _order(units: Units, seed: int, draw: int, estimator: str) -> Tensor:
    """(L,) when each position is written within its unit: 0 first, -1 never."""
    place = torch.arange(units.index.shape[1], device=units.index.device)
    number = place.double()
    if estimator == "any-order":
        number = seeds.uniform(seeds.key(seed, "score-order", draw, place))
    order = number.argsort()
    rank = torch.full_like(place, -1)
    for unit in range(len(units.size)):
        mine = order[units.index[0, order] == unit]
        rank[mine] = torch.arange(len(mine), device=place.device)
    return rank


def _in_order(units: Units, tokens: Tensor, mask: int, rank: Tensor) -> Question:
    """The chain rule: row j hides what is written j-th or later, and asks about the j-th; all units at once."""
    turn = torch.arange(int(units.size.max()), device=tokens.device)[:, None]
    return Question(noisy=torch.where(rank >= turn, mask, tokens), weight=(rank == turn).double())


def _split(question: Question, rows: int) -> Iterator[Question]:
    for noisy, weight in zip(question.noisy.split(rows), question.weight.split(rows), strict=True):
        yield Question(noisy=noisy, weight=weight)


def _nats(model: Denoiser, tokens: Tensor, question: Question, block: int | None) -> Tensor:
    """(R,) weighted nats of each row."""
    noisy, weight = question.noisy, question.weight
    clean = tokens.expand_as(noisy)
    place = torch.arange(len(tokens), device=tokens.device).expand_as(noisy)
    if block is None:
        features = model.read(noisy, positions=place, attend=Attend(kind="full"))
    else:
        batch = Batch(tokens=clean, documents=torch.zeros_like(place), places=place, samples=place[:, 0])
        features = two_streams(model, Noised(batch=batch, noisy=noisy, weight=weight, counts=weight > 0), block)
    r, i = (weight > 0).nonzero(as_tuple=True)
    nats = chunked_nll(model, features[r, i], clean[r, i]).double() * weight[r, i]
    return torch.zeros(len(noisy), dtype=torch.float64, device=noisy.device).index_add(0, r, nats)


def _causal(model: Denoiser, tokens: Tensor, asked: Tensor) -> Estimate:
    """Exact, in one forward of a model that reads left to right."""
    if bool(asked[0]):
        raise BadInput("a model that reads left to right needs a token before the text; give a begin of text, or ids")
    place = torch.arange(len(tokens), device=tokens.device)[None]
    features = model.read(tokens[None], positions=place, attend=Attend(kind="causal"))
    at = asked.nonzero()[:, 0]
    nats = chunked_nll(model, features[0, at - 1], tokens[at]).double()
    return Estimate(nats=float(nats.sum()), stderr=0.0, forwards=1, bound=False)
