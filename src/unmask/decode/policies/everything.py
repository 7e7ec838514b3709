"""Take every offer at once: what an autoregressive step does with its single target.

On a wider window this ignores how the targets depend on each other: it draws from the product of their marginals.

Source: Ghazvininejad et al. 2019, Mask-Predict, arXiv:1904.09324, sec. 3 (one parallel step).
"""

from dataclasses import dataclass
from typing import ClassVar

from unmask.base.step import Edit, Plan, Proposal


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything:
    """Accept all open targets."""

    revises: ClassVar[bool] = False

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with everything taken."""
        return edit.accept(offer.is_open, offer.tokens)
