"""Take every offer that the model is sure of, and never fewer than the budget of steps asks for.

Source: Wu et al. 2025, Fast-dLLM, arXiv:2505.22618, sec. 3.3 (>=); Cheng et al. 2025, SDAR, arXiv:2510.06303
(low-confidence dynamic: >, with the quota as a floor).
"""

from dataclasses import dataclass
from typing import ClassVar

from unmask.base.step import Edit, Plan, Proposal
from unmask.decode.knobs import Knob, column
from unmask.decode.policies.rank import READS, SCORES, Rank, best, ending
from unmask.decode.policies.timetable import TIMETABLES, Timetable


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Accept targets whose candidate has at least this probability.

    Args:
        threshold: probability from which an offer is taken.
        rank: which come first where too few are sure.
        strict: whether the probability has to be above the threshold (SDAR, LLaDA2) instead of at it (Fast-dLLM).
        timetable: how many are taken at least, see `Quota`.
        eos_last: whether an end of text is sure only where nothing else is left, see `Quota`.
        ends: ids that end a text; set from the vocabulary.
    """

    threshold: Knob = 0.9
    rank: Rank = "confidence"
    strict: bool = False
    timetable: Timetable = "even"
    eos_last: bool = False
    ends: tuple[int, ...] = ()
    revises: ClassVar[bool] = False

    @property
    def reads(self) -> frozenset[str]:
        """Statistics that its rank looks at."""
        return READS.get(self.rank, frozenset())

    def __call__(self, offer: Proposal, plan: Plan, edit: Edit) -> Edit:
        """The edit with all sure offers taken."""
        bar, p = column(self.threshold, plan.rows), offer.log_prob.exp()
        last = ending(offer, self.ends if self.eos_last else ())
        sure = offer.is_open & ~last & ((p > bar) if self.strict else (p >= bar))
        count = TIMETABLES[self.timetable](offer, plan)
        return edit.accept(sure | best(SCORES[self.rank](offer, plan), plan, offer.is_open, count, last), offer.tokens)
