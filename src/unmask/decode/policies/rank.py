"""Which offers come first: shared by the policies that take the best ones."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unmask.base import seeds
from unmask.base.attend import NOBODY
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
    if not ends:
        return torch.zeros_like(offer.is_open)
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
    tied = (among & ~chosen & (score == lowest)).any(1).nonzero()[:, 0].tolist()
    if not tied:
        return chosen
    stop = plan.positions.where(plan.positions == plan.slots, NOBODY).amax(1) + 1
    for r in tied:
        chosen[r] = _tied(score[r], plan.targets[r] - plan.among[r], int(stop[r] - plan.among[r]), int(count[r]))
    return chosen


def _tied(score: Tensor, places: Tensor, size: int, count: int) -> Tensor:
    """(T,) bool: the `count` best of a row in which some are equal: those that topk on a CPU takes of `size` places.

    Equal scores are common under top-p: where one token holds all of the mass that is kept, its probability is 1. The
    published samplers leave the choice to topk, which goes neither by position nor by chance; so that the texts are
    theirs on every device, the choice is left to the same function here, among as many places as there: never among
    what happens to be fed beside the text, or before it because nobody has read it yet.

    Args:
        score: (T,) of the targets.
        places: (T,) where they are among these places; negative where no target is.
    """
    row = torch.full((size,), -torch.inf, dtype=score.dtype)
    there = (places >= 0).cpu()
    at = places.cpu()[there]
    row[at] = score.cpu()[there]
    taken = torch.zeros(size, dtype=torch.bool)
    taken[row.topk(count).indices] = True
    chosen = torch.zeros_like(there)
    chosen[there] = taken[at]
    return chosen.to(score.device)
