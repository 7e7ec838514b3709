"""Take written tokens back, so that early mistakes can be repaired; follows a policy that accepts.

After `ancestral` it completes ReMDM's sampler: what stays open is filled with the extra probability that balances the
tokens taken back, so that the marginals of the process are kept. Per open target, ReMDM lifts the mask with
(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t); ancestral has spent (alpha_s - alpha_t) / (1 - alpha_t) of it, and
what is left, sigma alpha_t / (1 - alpha_s) of those still open, is spent here.

Source: Wang et al. 2025, ReMDM, arXiv:2503.00307, eq. 6 to 8, sec. 4.1 (cap, rescale).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unmask.base.errors import BadInput
from unmask.base.step import Edit, Plan, Proposal, State
from unmask.decode.policies.rank import coin


@dataclass(frozen=True, slots=True, kw_only=True)
class Remask:
    """Reopen each DONE target with probability sigma, and fill open ones in exchange.

    Args:
        remask: "cap" sigma = min(eta, sigma_max); "rescale" sigma = eta sigma_max; sigma_max = (1 - alpha_s) / alpha_t.
        eta: strength, 0 (nothing) to 1.
        mask: the token that an open position holds; set from the vocabulary.
    Raises:
        BadInput: eta outside [0, 1].
    """

    remask: Literal["cap", "rescale"] = "cap"
    eta: float = 0.05
    mask: int = 0
    revises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise BadInput(f"eta is a probability between 0 and 1, not {self.eta}")

    def asks(self, plan: Plan) -> Tensor:
        """(R, T) bool: the targets that may be filled or taken back."""
        filled, reopened = self._chosen(plan)
        return filled | reopened

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with some tokens taken back and as many masks lifted, in expectation."""
        filled, reopened = self._chosen(plan)
        edit = edit.accept(offer.is_open & filled & (edit.state == State.OPEN), offer.tokens)
        edit = edit.reopen(offer.asked & reopened, self.mask)
        return replace(
            edit, settled=edit.settled & (plan.left <= 0)
        )  # what is full before its last step may reopen yet

    def _chosen(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """(R, T) bool: which targets are filled if they are still open then, and which are taken back."""
        alpha_t, alpha_s = 1 - plan.t, 1 - plan.s
        most = torch.where(alpha_t > 0, (1 - alpha_s) / alpha_t, 1.0).clamp(max=1)
        sigma = most.clamp(max=self.eta) if self.remask == "cap" else self.eta * most
        fill = torch.where(alpha_s < 1, sigma * alpha_t / (1 - alpha_s), 1.0)
        filled = (plan.state == State.OPEN) & (coin(plan, "refill") < fill[:, None])
        return filled, (plan.state == State.DONE) & (coin(plan, "remask") < sigma[:, None])
