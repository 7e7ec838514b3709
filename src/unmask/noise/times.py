"""Laws by which noise levels are drawn: one number per unit, a unit being the positions that share a noise level.

A law either draws the mask probability of each unit, or how many of its positions are masked. It draws for all units of
a global batch at once, so that nothing depends on how the batch is split over workers or accumulation steps, and every
number is a pure function of the unit's key and of the set of keys it travels with.

It does not know which positions a unit has.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.base import seeds
from unmask.base.errors import BadInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """A law.

    Args:
        stratified: units share (0, 1) evenly, each in a stratum of its own, which one by a random permutation; each
            unit alone is uniform still. Otherwise units are independent.
        counts: a unit of n positions has exactly k of them masked, k uniform on 1 .. n; otherwise each position is
            masked with the unit's probability.
        low, high: the range of mask probabilities; anything but (0, 1) is biased.

    Source: stratified: Kingma et al. 2021, arXiv:2107.00630, app. I.1 (low-discrepancy times), Sahoo et al. 2024, MDLM,
    arXiv:2406.07524; over the global batch: Sahoo et al. 2025, arXiv:2506.10892. Exact counts: Hoogeboom et al. 2022,
    arXiv:2110.02037, eq. 5; Ou et al. 2024, RADD, arXiv:2406.03736, eq. 3.9. Clipped: Arriola et al. 2025, BD3-LM,
    arXiv:2503.09573, sec. 5.
    """

    stratified: bool
    counts: bool
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise BadInput(f"noise is drawn between low and high, 0 <= low < high <= 1, got {self.low} and {self.high}")
        if self.counts and (self.low, self.high) != (0, 1):
            raise BadInput("exact counts cover the whole range of noise; leave low at 0 and high at 1, or draw times")

    @property
    def biased(self) -> bool:
        """Whether a loss under this law is something else than the bound."""
        return (self.low, self.high) != (0, 1)

    def draw(self, keys: Tensor) -> Tensor:
        """(U,) float64 in (0, 1), uniform for each unit, from keys (U,), one per unit of the global batch."""
        numbers = seeds.uniform(seeds.key(keys, "level"))
        if not self.stratified:
            return numbers
        rank = torch.empty_like(keys)
        order = seeds.uniform(seeds.key(keys, "stratum")).argsort(stable=True)
        rank[order] = torch.arange(len(keys), device=keys.device)
        return (rank + numbers) / max(1, len(keys))


TABLE: dict[str, Times] = {
    "iid": Times(stratified=False, counts=False, low=1e-3),
    "stratified": Times(stratified=True, counts=False, low=1e-3),
    "exact-k": Times(stratified=False, counts=True),
    "exact-k-stratified": Times(stratified=True, counts=True),
    "clipped": Times(stratified=True, counts=False, low=0.3, high=0.8),
}
"""The published constants: MDLM and LLaDA draw from 1e-3 on (a bias of about a thousandth; from 0 the variance is
infinite), BD3-LM clips."""
