"""Write boldly and take back what looks wrong once more is known: wide in, narrow out.

What is written is judged by masks beside it, each of which sees all of the block but the place that it stands for.
Fewer are taken back than the step before wrote, so the text grows.

Source: Hong et al. 2025, WINO, arXiv:2507.18578, and `decoding_wino` of its release (the bounds on how many are written
and taken back are from there). A budget of steps, which the release has not, is kept as by other policies; a region
takes no more steps than it has positions anyway.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from unmask.base.step import Edit, Plan, Proposal, State
from unmask.decode.knobs import Knob, column
from unmask.decode.policies.rank import best
from unmask.decode.policies.timetable import even

SHARE, LEAST, MOST = 0.7, 5, 20
"""Of the open targets, this share is written at most, but so many may always be, and never more than so many."""
BEFORE = 30
"""What the step before a block's first counts as having written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wino:
    """Accept targets that have more than one probability, and reopen written ones that have less than another.

    Args:
        threshold: probability above which an offer is taken; the best one always is.
        doubt: probability below which a written token is taken back.
        mask: the token that an open position holds; set from the vocabulary.
    """

    threshold: Knob = 0.6
    doubt: Knob = 0.9
    mask: int = 0
    revises: ClassVar[bool] = True
    shadows: ClassVar[bool] = True

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with what is sure enough written and what is doubtful taken back."""
        sure = (offer.is_open & (offer.log_prob.exp() > column(self.threshold, plan.rows))).sum(1)
        most = (offer.is_open.sum(1) * SHARE).long().clamp(LEAST, MOST)
        count = torch.maximum(torch.minimum(sure.clamp(min=1), most), even(offer, plan))
        taken = best(offer.log_prob, plan, offer.is_open, count)
        written = offer.asked & (plan.state == State.DONE)
        doubtful = written & (offer.standing.exp() < column(self.doubt, plan.rows))
        before = torch.where(plan.took < 0, BEFORE, plan.took)
        fewest = torch.where(doubtful.sum(1) >= before, before - 1, doubtful.sum(1))
        goes_on = (taken.sum(1) > 1) & (plan.left > 0)
        back = best(-offer.standing, plan, doubtful, fewest) & goes_on[:, None]
        return edit.accept(taken, offer.tokens).reopen(back, self.mask)
