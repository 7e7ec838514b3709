"""The absorbing process: tokens turn into masks.

Positions are grouped into units that share one noise level: a document's piece in a row, or a block of it. Given
levels, each position is masked with a probability, or exactly k of a unit are: the k with the smallest of their own
uniform numbers. It does not know where levels and numbers come from, nor what a mask looks like.

Source: Austin et al. 2021, D3PM, arXiv:2107.03006, sec. 3.1 (absorbing state).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unmask.noise.schedules import Schedule
from unmask.noise.times import Times

Weight = Literal["elbo", "none"]
NO_UNIT = -1
"""The unit of a position that is never masked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """The units of a batch, in the order of its rows.

    Args:
        index: (B, L) the unit of each position, NO_UNIT where it has none.
        size: (U,) positions of each unit, at least 1.
        row, first: (U,) where its first position is.
    """

    index: Tensor
    size: Tensor
    row: Tensor
    first: Tensor

    @classmethod
    def of(cls, documents: Tensor, places: Tensor, counts: Tensor, block: int | Tensor | None = None) -> "Units":
        """Group positions.

        Args:
            documents, places: (B, L), see `Batch`; the slots of a document are neighbours.
            counts: (B, L) bool, positions that may be masked; the others are in no unit.
            block: positions a block, counted from the start of each document; one number, or one per row (B,). None
                makes a document's piece one unit.
        """
        if block is None:
            blocks = torch.zeros_like(places)
        else:
            blocks = places // (block[:, None] if torch.is_tensor(block) else block)
        starts = torch.ones_like(counts)
        starts[:, 1:] = (documents[:, 1:] != documents[:, :-1]) | (blocks[:, 1:] != blocks[:, :-1])
        run = (starts.flatten().cumsum(0) - 1).view_as(places)
        flat = counts.flatten().nonzero()[:, 0]
        _, index, size = run.flatten()[flat].unique_consecutive(return_inverse=True, return_counts=True)
        first = flat[size.cumsum(0) - size]
        whole = torch.full_like(run, NO_UNIT)
        whole.view(-1)[flat] = index
        return cls(index=whole, size=size, row=first // places.shape[1], first=first % places.shape[1])

    def spread(self, values: Tensor, other: float = 0) -> Tensor:
        """(B, L) the value (U,) of each position's unit, `other` where it has none."""
        if not len(values):
            return torch.full_like(self.index, other, dtype=values.dtype)
        return torch.where(self.index == NO_UNIT, other, values[self.index.clamp(min=0)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """The noise of each unit.

    Args:
        count: (U,) how many positions are masked, or None where each is masked with `probability`.
        probability: (U,) float64; count / size where counts are given.
        weight: (U,) float64, what the nats of a masked position are multiplied by.
    """

    count: Tensor | None
    probability: Tensor
    weight: Tensor


def elbo_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """-alpha'(t) / (1 - alpha(t)): weights nats at time t such that their mean over t is the bound.

    Source: Sahoo et al. 2024, MDLM, arXiv:2406.07524, eq. 10; Shi et al. 2024, MD4, arXiv:2406.04329, eq. 5.
    """
    return -schedule.slope(t) / (1 - schedule.alpha(t))


def levels(size: Tensor, times: Times, schedule: Schedule, numbers: Tensor, weight: Weight = "elbo") -> Levels:
    """Noise levels from uniform numbers.

    Args:
        size: (U,) positions of each unit.
        times: the law.
        schedule: what turns times into mask probabilities; exact counts need none.
        numbers: (U,) in (0, 1), drawn by the law.
        weight: "elbo" makes the expected weighted nats of a unit its bound: `elbo_weight`, or n / k. "none" weighs all
            masked positions alike.

    Source: n / k: Uria et al. 2014, arXiv:1310.1757; Ou et al. 2024, RADD, arXiv:2406.03736, eq. 3.9.
    """
    count = None
    if times.counts:
        count = (1 + (numbers * size).long()).clamp(max=size)
        probability = count.double() / size
        bound = size.double() / count
    else:
        ends = torch.tensor([1 - times.low, 1 - times.high], dtype=torch.float64, device=numbers.device)
        start, end = schedule.time(ends)
        t = start + (end - start) * numbers
        probability, bound = 1 - schedule.alpha(t), elbo_weight(schedule, t)
    return Levels(count=count, probability=probability, weight=bound if weight == "elbo" else torch.ones_like(bound))


def absorb(units: Units, noise: Levels, numbers: Tensor) -> Tensor:
    """Which positions become masks.

    Args:
        units, noise: the units and their levels.
        numbers: (B, L) float64 uniform, each position's own.
    Returns:
        (B, L) bool, False in no unit.
    """
    if noise.count is None:
        return numbers < units.spread(noise.probability)
    return ranks(units, numbers) < units.spread(noise.count)


def ranks(units: Units, numbers: Tensor) -> Tensor:
    """(B, L) how many positions of the same unit have smaller numbers (B, L); 0 in no unit."""
    flat = (units.index.flatten() != NO_UNIT).nonzero()[:, 0]
    unit = units.index.flatten()[flat]
    order = numbers.flatten()[flat].argsort(stable=True)
    order = order[unit[order].argsort(stable=True)]  # by unit, and by number within it
    start = units.size.cumsum(0) - units.size
    rank = torch.zeros_like(units.index)
    rank.view(-1)[flat[order]] = torch.arange(len(flat), device=flat.device) - start[unit[order]]
    return rank
