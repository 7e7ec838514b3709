"""Run the noise process backwards: every open target is filled with the probability that the process gives it.

Exact in the limit of many steps, whatever the model's distribution; the choice of positions never looks at the model.

Source: Sahoo et al. 2024, MDLM, arXiv:2406.07524, eq. 7: a mask is lifted with probability (alpha_s - alpha_t) /
(1 - alpha_t), here with alpha = 1 - t.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unmask.base.step import Edit, Plan, Proposal, State
from unmask.decode.policies.rank import coin


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestral:
    """Accept each open target with probability (t - s) / t."""

    revises: ClassVar[bool] = False

    def asks(self, plan: Plan) -> Tensor:
        """(R, T) bool: the targets that the coin chose; all of them in the last step."""
        steps = (plan.left + 1).clamp(min=1)  # (t - s) / t = 1 / steps left, without rounding
        return (plan.state == State.OPEN) & (coin(plan, "unmask") * steps[:, None] < 1)

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with the targets that the coin chose."""
        return edit.accept(offer.is_open & self.asks(plan), offer.tokens)
