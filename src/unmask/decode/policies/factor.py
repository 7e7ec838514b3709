"""Take as many of the best offers as can be taken together: the more, the surer each has to be.

The released loop takes one offer too many where the first failure is the last in rank; this is the published rule.

Source: Wu et al. 2025, Fast-dLLM, arXiv:2505.22618, theorem 1 and sec. 3.3: (n + 1)(1 - c_n) <= f.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from unmask.base.step import Edit, Plan, Proposal
from unmask.decode.knobs import Knob, column
from unmask.decode.policies.rank import best
from unmask.decode.policies.timetable import even


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """Accept the n most confident targets, n as large as c_k >= 1 - factor / (k + 1) holds for all k <= n.

    Args:
        factor: f; larger takes more at once.
    """

    factor: Knob = 1.0
    revises: ClassVar[bool] = False

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with the n best taken, or as many as the budget of steps asks for."""
        p = torch.where(offer.is_open, offer.log_prob.exp(), -1.0).sort(1, descending=True).values
        k = torch.arange(1, p.shape[1] + 1, device=p.device)
        holds = (p >= 1 - column(self.factor, plan.rows) / (k + 1)) & (p >= 0)
        count = torch.maximum(holds.int().cummin(1).values.sum(1), even(offer, plan))
        return edit.accept(best(offer.log_prob, plan, offer.is_open, count), offer.tokens)
