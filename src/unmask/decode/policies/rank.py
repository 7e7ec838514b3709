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
    "margin": lambda offer, plan: offer.margin,
    "entropy": lambda offer, plan: -offer.entropy,
    "random": lambda offer, plan: coin(plan, "rank"),
    "position": lambda offer, plan: -plan.targets.double(),
}
"""Higher comes first; (R, T) float64."""


def coin(plan: Plan, stream: str) -> Tensor:
    """(R, T) uniform numbers in (0, 1), keyed by the row's seed, its turn and the position."""
    return seeds.uniform(seeds.key(plan.seed[:, None], stream, plan.turn[:, None], plan.targets))


def quota(offer: Proposal, plan: Plan) -> Tensor:
    """(R,) how many open targets this step has to fill so that the region's budget of steps is kept.

    With n open positions and k steps left, ceil(n / k): the published shares (n // k, one more in the first n % k
    steps), computed from what is left instead of remembered.
    """
    num_open = offer.is_open.sum(1)
    steps = (plan.left + 1).clamp(min=1)
    return -(-num_open // steps)


def best(score: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """(R, T) bool: the `count` (R,) highest scores among the allowed targets; ties go to the left."""
    order = score.masked_fill(~among, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return (order.argsort(dim=1) < count[:, None]) & among
