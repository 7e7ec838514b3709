"""Grow until the model sees an end of text, and again where it is at a loss for words.

Before anything is written, forwards over masks alone make the row longer until ends of text are likely behind the text:
the network has learnt to pad with them. While it is written, a mask whose best token has next to no probability gives
way to several, unless ends of text are certain.

As published, but for three things: the mask takes no part in what is probable, as everywhere here; all ids that end a
text count as one; and between the two phases stand as many ends of text behind the row as the release puts there (half
of those it looks at), of which the paper does not speak.

Source: Li et al. 2025, DAEDAL, arXiv:2508.00819, sec. 3 (initial length adjustment; iterative mask insertion).
"""

from dataclasses import dataclass

import torch

from unmask.base.errors import Unsupported
from unmask.base.step import State, Turn
from unmask.base.vocab import Vocab
from unmask.decode.growth.row import Growing, Resize
from unmask.text.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Daedal:
    """A tail that grows.

    Args:
        start: positions at first.
        insert: positions that take the place of one, and that are put behind the row before writing.
        unsure: probability of a mask's best token below which it gives way.
        enough: how sure of an end the network is when the row is long enough to be begun.
        ended: the same from which on no mask gives way.
        tail: ends of text that are looked at: the last ones that the network expects; those that lack count as 0.
        eos: what is put behind a row; set from the vocabulary.
    """

    start: int = 64
    insert: int = 8
    unsure: float = 0.1
    enough: float = 0.5
    ended: float = 0.9
    tail: int = 32
    eos: int | None = None

    @property
    def listens(self) -> int:
        """At how many places the rule wants to know how sure the network is of an end of text."""
        return self.tail

    def check(self, layout: Layout, vocab: Vocab, *, constrained: bool) -> None:
        """Raise Unsupported for a row that is not for this rule."""
        if not vocab.ends:
            raise Unsupported("lengths='daedal' listens for an end of text, and this model has none; leave it out")
        gap = layout.gaps[-1]
        if gap.bounds is None or gap.stop != len(layout.tokens):
            raise Unsupported("lengths='daedal' lets the end of a text grow, not a gap before other text; use 'try'")

    def may(self, row: Growing) -> tuple[bool, bool]:
        """Whether the model may say that a position is to be two, or none."""
        return False, False

    def __call__(self, row: Growing, turn: Turn, i: int) -> Resize | None:
        """What becomes of a row, the `i`-th of a turn's plan."""
        end = len(row.layout.tokens)
        if not row.settled:
            nothing = torch.ones_like(turn.plan.targets[i], dtype=torch.bool)
            if row.ending < self.enough and row.room:
                return Resize(source=row.with_new(end, min(self.insert, row.room)), void=nothing)
            row.settled = True
            if (count := min(self.tail // 2, row.room)) and self.eos is not None:
                return Resize(source=row.with_new(end, count), void=nothing, token=self.eos)
        if not row.room or row.ending >= self.ended:
            return None
        left = turn.offer.is_open[i] & (turn.edit.state[i] == State.OPEN)
        held = turn.offer.log_prob[i].exp().masked_fill(~left, torch.inf)
        if float(held.min()) >= self.unsure:
            return None
        at = int(turn.plan.targets[i, held.argmin()])
        return Resize(source=row.with_new(at + 1, min(self.insert - 1, row.room)))
