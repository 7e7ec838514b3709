"""Take the surest offers for this step only, and give noise back to all other positions.

Every step judges every position anew: nothing is kept because it was taken before. The region is done once the best
token of each position is what it was at the last step while the model is sure of them all, or when its steps are spent;
then the best tokens are written, whatever was drawn.

Source: DiffusionGemma, Google 2026: `EntropyBoundSampler` and `StableAndConfidentStoppingCriteria` (with a
stability_threshold of 1) of transformers 5.24; the bound: Ben-Hamu et al. 2025, EB-Sampler, arXiv:2505.24857, eq. 7.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from unmask.base.step import Edit, Plan, Proposal
from unmask.decode.knobs import Knob, column
from unmask.decode.policies.rank import coin, given


@dataclass(frozen=True, slots=True, kw_only=True)
class Renoise:
    """Accept the longest run of targets, by rising entropy, whose entropies without the largest sum to at most `bound`.

    Args:
        bound: nats; 0 takes one target a step (and certain ones for free).
        settle: nats; mean entropy below which a region whose best tokens stay the same is done. 0 spends all steps.
        size: noise is a uniform token below it; set from the vocabulary.
        mask: the token that takes the place of noise in models that have one; set from the vocabulary.
    """

    bound: Knob = 0.1
    settle: Knob = 0.005
    size: int = 1
    mask: int | None = None
    revises: ClassVar[bool] = True
    anew: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with that run taken and noise elsewhere; or, where the region is done, with the best tokens."""
        entropy, order = torch.where(offer.asked, given(offer.entropy), torch.inf).sort(stable=True, dim=1)
        known = entropy.nan_to_num(posinf=0.0)
        holds = (known.cumsum(1) - known <= column(self.bound, plan.rows)) & entropy.isfinite()
        taken = torch.zeros_like(holds).scatter(1, order, holds)
        noise = (coin(plan, "noise") * self.size).long() if self.mask is None else self.mask
        edit = edit.accept(taken, offer.tokens).reopen(offer.asked & ~taken, noise)
        still = ((offer.best == plan.last) | ~offer.asked).all(1)
        mean = known.sum(1) / offer.asked.sum(1).clamp(min=1)
        done = (still & (mean < column(self.settle, plan.rows)[:, 0])) | (plan.left <= 0)
        edit = edit.accept(offer.asked & done[:, None], offer.best)
        return replace(edit, settled=edit.settled & done)
