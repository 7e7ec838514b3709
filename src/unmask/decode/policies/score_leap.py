"""Run the noise process backwards at the rates of the score: a target jumps from the mask with the step's probability.

On absorbing noise a mask can only jump to a clean token, to each in proportion to its ratio; so which token it would be
is the candidate, and whether it jumps follows from the ratios' sum. A network that says log-probabilities has the sum
that an exact score would have, which is how RADD samples. With log-linear noise both kinds of step are one, and with an
exact score they are `ancestral`.

The published samplers count their time down to 1e-5, and a last denoising step draws what is still masked there; here
the last step runs down to 0 and is that step, so `steps` are all forwards.

Source: Lou et al. 2024, SEDD, arXiv:2310.16834, sec. 4.1 (tau-leaping with Euler steps; the discrete Tweedie theorem)
and sampling.py of its release; from clean probabilities: Ou et al. 2024, RADD, arXiv:2406.03736, sec. 3.1.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from unmask.base.errors import Unsupported
from unmask.base.step import Edit, Plan, Proposal
from unmask.base.vocab import Traits
from unmask.decode.policies.rank import coin
from unmask.noise import clock


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreLeap:
    """Accept each open target with the probability that it jumps between t and s; all of them in the last step.

    Args:
        leap: "euler" keeps the rate of time t for the whole step; "analytic" integrates it (Tweedie).
        traits: of the model, for its noise; set from the model.
    Raises:
        Unsupported: noise without a mask.
    """

    leap: Literal["euler", "analytic"] = "analytic"
    traits: Traits = field(default_factory=Traits)
    revises: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.traits.noise != "absorb":
            raise Unsupported(
                f"score_leap is for noise that masks tokens ('absorb'), and this model's is {self.traits.noise!r}; "
                "use another policy"
            )

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with all targets that jumped."""
        schedule = clock.schedule(self.traits)
        alpha = schedule.alpha(plan.t)
        grown = -schedule.slope(plan.t) * (plan.t - plan.s) if self.leap == "euler" else schedule.alpha(plan.s) - alpha
        jump = (grown / (1 - alpha))[:, None] * (1 if offer.mass is None else offer.mass.exp())
        return edit.accept(offer.is_open & ((coin(plan, "leap") < jump) | (plan.left <= 0)[:, None]), offer.tokens)
