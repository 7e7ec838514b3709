"""Take the surest offers as long as what they could still tell each other stays below a bound.

The sum of entropies without the largest bounds the mutual information of the targets taken, and so the error of
drawing them independently.

Source: Ben-Hamu et al. 2025, EB-Sampler, arXiv:2505.24857, sec. 3 and eq. 7.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from unmask.base.step import Edit, Plan, Proposal
from unmask.decode.knobs import Knob, column
from unmask.decode.policies.rank import best, given
from unmask.decode.policies.timetable import even


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyBound:
    """Accept the longest run of targets, by rising entropy, whose entropies without the largest sum to at most `bound`.

    Args:
        bound: nats; 0 takes one target a step (and certain ones for free).
    """

    bound: Knob = 0.1
    revises: ClassVar[bool] = False
    reads: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with that run taken, or as many as the budget of steps asks for."""
        entropies = given(offer.entropy)
        entropy = torch.where(offer.is_open, entropies, torch.inf).sort(1).values
        others = torch.nan_to_num(entropy, posinf=0.0).cumsum(1) - torch.nan_to_num(entropy, posinf=0.0)
        told = torch.where(plan.due[:, None], others, others + torch.nan_to_num(entropy, posinf=0.0))
        holds = (told <= column(self.bound, plan.rows)) & entropy.isfinite()
        count = torch.maximum(holds.int().cummin(1).values.sum(1), even(offer, plan))
        return edit.accept(best(-entropies, plan, offer.is_open, count), offer.tokens)
