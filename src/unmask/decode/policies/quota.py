"""Take a fixed share of the open targets each step, the best ones first.

Source: Chang et al. 2022, MaskGIT, arXiv:2202.04200, sec. 3.2; Nie et al. 2025, LLaDA, arXiv:2502.09992, app. A.3
(low-confidence remasking: `confidence`) and app. B.4 (`eos_last`); Ye et al. 2025, Dream, arXiv:2508.15487 (`entropy`,
`margin`; its `origin` is the policy ancestral).
"""

from dataclasses import dataclass
from typing import ClassVar

from unmask.base.step import Edit, Plan, Proposal
from unmask.decode.policies.rank import READS, SCORES, Rank, best, ending
from unmask.decode.policies.timetable import TIMETABLES, Timetable


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Accept as many targets as the budget of steps asks for.

    Args:
        rank: which come first.
        timetable: how the budget is shared out: "even" over the steps, by what is open; "full" as if all positions of
            the region had been open (SDAR, LLaDA2); "linear" by the time of the noise process, rounded down (Dream).
        eos_last: whether offers of an end of text come after all others: LLaDA's "confidence of EOS is zero", for
            models that learnt to pad with it. The release (`confidence_eos_eot_inf`) also renormalises the other
            confidences at temperature 0, and above 0 it forgets the end of text; here both are as the paper has it.
        ends: ids that end a text; set from the vocabulary.
    """

    rank: Rank = "confidence"
    timetable: Timetable = "even"
    eos_last: bool = False
    ends: tuple[int, ...] = ()
    revises: ClassVar[bool] = False

    @property
    def reads(self) -> frozenset[str]:
        """Statistics that its rank looks at."""
        return READS.get(self.rank, frozenset())

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with this step's share taken."""
        count = TIMETABLES[self.timetable](offer, plan)
        last = ending(offer, self.ends if self.eos_last else ())
        return edit.accept(best(SCORES[self.rank](offer, plan), plan, offer.is_open, count, last), offer.tokens)
