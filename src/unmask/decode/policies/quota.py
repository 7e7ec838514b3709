"""Take a fixed share of the open targets each step, the best ones first.

Source: Chang et al. 2022, MaskGIT, arXiv:2202.04200, sec. 3.2; Nie et al. 2025, LLaDA, arXiv:2502.09992, app. A.3
(low-confidence remasking: `confidence`); Ye et al. 2025, Dream, arXiv:2508.15487 (`entropy`, `margin`).
"""

from dataclasses import dataclass
from typing import ClassVar

from unmask.base.step import Edit, Plan, Proposal
from unmask.decode.policies.rank import SCORES, Rank, best, quota


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Accept as many targets as the budget of steps asks for.

    Args:
        rank: which come first.
    """

    rank: Rank = "confidence"
    revises: ClassVar[bool] = False

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with this step's share taken."""
        return edit.accept(best(SCORES[self.rank](offer, plan), offer.is_open, quota(offer, plan)), offer.tokens)
