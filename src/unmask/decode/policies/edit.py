"""Replace written tokens that the model would write differently now; follows a policy that accepts.

A region is settled once nothing is open and nothing was replaced, or after `rounds` forwards beyond its budget.

Source: LLaDA2.1, 2026, arXiv:2602.08676, sec. 3 (token-to-token editing, threshold for edits apart from the one for
masks).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from unmask.base.step import Edit, Plan, Proposal, State
from unmask.decode.knobs import Knob, column


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace:
    """Overwrite DONE targets whose candidate differs and has at least this probability.

    Args:
        edit_threshold: probability from which a written token is replaced.
        rounds: forwards beyond the region's budget after which it is settled all the same.
    """

    edit_threshold: Knob = 0.9
    rounds: int = 16
    revises: ClassVar[bool] = True

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with mistaken tokens replaced."""
        written = offer.asked & (plan.state == State.DONE) & (edit.state == State.DONE)
        better = (offer.tokens != plan.standing) & (offer.log_prob.exp() > column(self.edit_threshold, plan.rows))
        spent = plan.left <= -self.rounds
        replaced = written & better & ~spent[:, None]
        return replace(edit.accept(replaced, offer.tokens), settled=edit.settled & ~replaced.any(1))
