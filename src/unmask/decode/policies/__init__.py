"""Which offers become tokens, and which tokens are taken back: one policy a file, one line here.

A policy is a frozen dataclass whose fields are its options, with `revises` (whether it may change DONE positions) and
`(offer, plan, edit) -> edit`. One that writes every target anew each step, kept tokens included, says so by `anew`.
Policies are applied in order; each sees what those before it decided.

What is not needed is not computed. A policy that reads an offer's entropy or margin names it in `reads`; one that knows
which targets it may change before it sees an offer is `Choosy`, and the others get none.
"""

from typing import Protocol, TypeGuard

from torch import Tensor

from unmask.base.step import Edit, Plan, Proposal
from unmask.decode.policies.ancestral import Ancestral
from unmask.decode.policies.edit import Replace
from unmask.decode.policies.entropy_bound import EntropyBound
from unmask.decode.policies.everything import Everything
from unmask.decode.policies.factor import Factor
from unmask.decode.policies.quota import Quota
from unmask.decode.policies.remask import Remask
from unmask.decode.policies.renoise import Renoise
from unmask.decode.policies.score_leap import ScoreLeap
from unmask.decode.policies.threshold import Threshold
from unmask.decode.policies.verify import Verify
from unmask.decode.policies.wino import Wino


class Policy(Protocol):
    """Turns an offer into an edit."""

    @property
    def revises(self) -> bool:
        """Whether DONE positions may change."""
        ...

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit, with this policy's decisions added."""
        ...


class Choosy(Policy, Protocol):
    """A policy that knows which targets it may change before it sees an offer."""

    def asks(self, plan: Plan) -> Tensor:
        """(R, T) bool: those targets."""
        ...


def choosy(policy: Policy) -> TypeGuard[Choosy]:
    """Whether it is one. To ask a protocol takes longer than a step of a policy."""
    return hasattr(policy, "asks")


TABLE: dict[str, type[Policy]] = {
    "everything": Everything,
    "quota": Quota,
    "threshold": Threshold,
    "factor": Factor,
    "entropy_bound": EntropyBound,
    "ancestral": Ancestral,
    "score_leap": ScoreLeap,
    "remask": Remask,
    "renoise": Renoise,
    "edit": Replace,
    "wino": Wino,
    "verify": Verify,
}
