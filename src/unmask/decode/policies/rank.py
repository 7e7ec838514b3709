"""Which offers come first: shared by the policies that take the best ones."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unmask.base import seeds
from unmask.base.step import Plan, Proposal

Rank = Literal["confidence", "margin", "entropy", "random", "position"]

SCORES: dict[str, Callable[[Proposal, Plan], Tensor]] = {
    "confidence": lambda offer, plan: offer.log_prob,
    "margin": lambda offer, plan: given(offer.margin),
    "entropy": lambda offer, plan: -given(offer.entropy),
    "random": lambda offer, plan: coin(plan, "rank"),
    "position": lambda offer, plan: -plan.targets.double(),
}
"""Higher comes first; (R, T) float64."""

READS: dict[str, frozenset[str]] = {"margin": frozenset({"margin"}), "entropy": frozenset({"entropy"})}
"""Statistics of an offer that a rank reads, see `unmask.decode.propose.ALL_READS`."""


def given(statistic: Tensor | None) -> Tensor:
    """A statistic that the policy named in its `reads`."""
    assert statistic is not None
    return statistic


def coin(plan: Plan, stream: str) -> Tensor:
    """(R, T) uniform numbers in (0, 1), keyed by the row's seed, its turn and the position."""
    return seeds.uniform(seeds.key(plan.seed[:, None], stream, plan.turn, plan.targets))


def ending(offer: Proposal, ends: tuple[int, ...]) -> Tensor:
    """(R, T) bool: offers of a token that ends the text, in rows where an open target is offered another one."""
    ids = torch.tensor(ends, dtype=offer.tokens.dtype, device=offer.tokens.device)
    ending = torch.isin(offer.tokens, ids)
    return ending & (offer.is_open & ~ending).any(1, keepdim=True)


def best(score: Tensor, plan: Plan, among: Tensor, count: Tensor, last: Tensor | None = None) -> Tensor:
    """(R, T) bool: the `count` (R,) highest scores among the allowed targets; equal ones as published, see `_tied`.

    Those of `last` come after all others, whatever their scores.
    """
    worst = torch.finfo(score.dtype).min  # an allowed target stands before all others, even with a probability of 0
    score = score.clamp(min=worst) if last is None else score.clamp(min=worst).masked_fill(last, worst)
    score = score.masked_fill(~among, -torch.inf)
    order = score.argsort(dim=1, descending=True, stable=True)
    chosen = (order.argsort(dim=1) < count[:, None]) & among
    lowest = score.masked_fill(~chosen, torch.inf).amin(1, keepdim=True)
    for r in (among & ~chosen & (score == lowest)).any(1).nonzero()[:, 0].tolist():
        chosen[r] = _tied(score[r], plan.targets[r], plan.positions[r], int(count[r]))
    return chosen


def _tied(score: Tensor, targets: Tensor, positions: Tensor, count: int) -> Tensor:
    """(T,) bool: the `count` best of a row in which some are equal: those that topk on a CPU takes of all that was fed.

    Equal scores are common under top-p: where one token holds all of the mass that is kept, its probability is 1. The
    published samplers leave the choice to topk, which goes neither by position nor by chance; so that the texts are
    theirs on every device, the choice is left to the same function here.
    """
    first, size = positions[0], int((positions >= 0).sum())
    row = torch.full((size,), -torch.inf, dtype=score.dtype)
    there = (targets >= 0).cpu()
    at = (targets - first).cpu()[there]
    row[at] = score.cpu()[there]
    taken = torch.zeros(size, dtype=torch.bool)
    taken[row.topk(count).indices] = True
    chosen = torch.zeros_like(there)
    chosen[there] = taken[at]
    return chosen.to(score.device)
