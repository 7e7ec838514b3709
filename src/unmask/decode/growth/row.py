"""A row whose gap may change its length while it is written, a rule for that, and one such change.

It does not know canvases or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from unmask.base.canvas import NEW
from unmask.base.step import Turn
from unmask.base.vocab import Vocab
from unmask.constrain.holes import Span as Held
from unmask.text.layout import Layout, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Positions put into a row, or left out of it, after a step.

    Args:
        source: the position that each position of the new row was before; `NEW` where it was none.
        void: (T,) bool, targets at which the step writes nothing after all; None is nowhere.
        token: what new positions hold for good; None leaves them to be written.
    """

    source: Sequence[int]
    void: Tensor | None = None
    token: int | None = None


class Rule(Protocol):
    """Decides how long a gap is."""

    @property
    def start(self) -> int:
        """Positions that a gap has at first."""
        ...

    @property
    def listens(self) -> int:
        """At how many places the rule wants to know how sure the network is of an end of text."""
        ...

    def check(self, layout: Layout, vocab: Vocab, *, constrained: bool) -> None:
        """Raise Unsupported for a row that is not for this rule."""
        ...

    def may(self, row: "Growing") -> tuple[bool, bool]:
        """Whether the model may say, by a token, that a position is to be two, or none."""
        ...

    def __call__(self, row: "Growing", turn: Turn, i: int) -> Resize | None:
        """What becomes of a row, the `i`-th of a turn's plan; None where it stays as it is."""
        ...


@dataclass(slots=True, eq=False)
class Growing:
    """A row with one gap that has bounds.

    Attributes:
        rule: for its length.
        mask: what its open positions hold.
        layout, spans: what it means now, and what its text has to be.
        settled: whether the length that it starts with has been found.
        ending: how sure the network was of an end of text at its last look.
        grown: positions that were put in so far.
    """

    rule: Rule
    mask: int
    layout: Layout
    spans: Sequence[Held] = ()
    settled: bool = False
    ending: float = 0.0
    grown: int = 0

    @property
    def gap(self) -> Span:
        """The one that may change."""
        return next(gap for gap in self.layout.gaps if gap.bounds is not None)

    @property
    def least(self) -> int:
        """Positions that the gap has to have."""
        bounds = self.gap.bounds
        assert bounds is not None
        return bounds[0]

    @property
    def room(self) -> int:
        """Positions that may still be put in."""
        bounds = self.gap.bounds
        assert bounds is not None
        return bounds[1] - self.gap.size

    def with_new(self, at: int, count: int) -> list[int]:
        """The row's positions with so many new ones before position `at`."""
        return [*range(at), *[NEW] * count, *range(at, len(self.layout.tokens))]
