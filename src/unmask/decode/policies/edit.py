"""Replace written tokens that the model would write differently now; follows a policy that accepts.

A region is settled by a forward that found nothing open and replaced nothing, or by its `rounds`-th forward that found
nothing open, as it stands then.

Source: LLaDA2.1, 2026, arXiv:2602.08676, sec. 3 (token-to-token editing, threshold for edits apart from the one for
masks; 16 rounds at most, from its released generate).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from unmask.base.step import Edit, Plan, Proposal, State
from unmask.decode.knobs import Knob, column


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace:
    """Overwrite DONE targets whose candidate differs and has more than this probability.

    Args:
        edit_threshold: probability above which a written token is replaced; 0 always takes the candidate.
        rounds: forwards over a region with nothing open after which it is settled all the same.
    """

    edit_threshold: Knob = 0.9
    rounds: Knob = 16
    revises: ClassVar[bool] = True

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with mistaken tokens replaced."""
        written = offer.asked & (plan.state == State.DONE) & (edit.state == State.DONE)
        better = (offer.tokens != plan.standing) & (offer.log_prob.exp() > column(self.edit_threshold, plan.rows))
        unchecked = offer.is_open.any(1)  # what is written now has not been read by any forward
        replaced = written & better
        idle = torch.where(unchecked, 0, plan.idle + 1)
        spent = (idle >= column(self.rounds, plan.rows)[:, 0]) & ~(edit.state == State.OPEN).any(1)
        settled = edit.settled & ((~unchecked & ~replaced.any(1)) | spent)
        return replace(edit.accept(replaced, offer.tokens), settled=settled)
