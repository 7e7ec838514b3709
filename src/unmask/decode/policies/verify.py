"""Keep what was drafted as far as it is what the model would have written, and one token more; with the window `draft`.

Tokens are compared, not probabilities: noise is keyed by the position, so what is kept is token for token what
token-by-token writing gives with the same seed, at any temperature.

Source: Leviathan et al. 2023, arXiv:2211.17192 (verification of a draft); with draft and verification by the same
weights: see the window `draft`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from unmask.base.step import Edit, Plan, Proposal


@dataclass(frozen=True, slots=True, kw_only=True)
class Verify:
    """Put a draft into open targets; in the last step of a region, accept it up to the first token that is unlike it.

    Args:
        mask: what an open position holds where nothing is drafted; set from the vocabulary.
        ends: ids that end a text, behind which nothing of a draft is kept; set from the vocabulary.
    """

    mask: int | None = None
    ends: tuple[int, ...] = ()
    revises: ClassVar[bool] = False

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with a draft, or with what was kept of one."""
        assert self.mask is not None
        drafted = offer.is_open & (plan.standing != self.mask)
        checks = (plan.left <= 0)[:, None]
        ends = torch.isin(offer.tokens, torch.tensor(self.ends, dtype=torch.int64, device=offer.tokens.device))
        same = (drafted & ~ends & (offer.tokens == plan.standing)).int().cumprod(1).sum(1, keepdim=True)
        kept = torch.arange(drafted.shape[1], device=same.device) <= same
        edit = edit.accept(offer.is_open & checks & kept, offer.tokens)
        edit = edit.reopen(offer.is_open & checks & ~kept, self.mask).reopen(offer.is_open & ~checks, offer.tokens)
        unread = plan.targets[:, 0] + torch.where(checks, same, 0)[:, 0]  # where the token is another one than was read
        return replace(edit, settled=edit.settled & checks[:, 0], misread=unread)
