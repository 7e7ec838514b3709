"""Let the model say itself where a gap is too short or too long, by tokens that it learnt for that.

A position for which the model takes `expand` becomes two masks, one for which it takes `delete` is no more. Neither
token is ever text. A gap that is as long as it may be can't be expanded, nor can one that was expanded by twice its
bound in all, so that growing and shrinking come to an end; a gap that is as short as it may be can't be shortened.

Source: Wu et al. 2026, DreamOn, arXiv:2602.01326 (there the end of text is what deletes).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from unmask.base.canvas import NEW
from unmask.base.errors import Unsupported
from unmask.base.step import State, Turn
from unmask.base.vocab import Vocab
from unmask.decode.growth.row import Growing, Resize
from unmask.text.layout import Layout

BUDGET = 2
"""Positions that may be put into a gap in all, in gaps of the greatest length; as published."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """A gap that grows and shrinks as the model says.

    Args:
        start: positions at first.
        expand, delete: the tokens; set from the vocabulary.
    """

    start: int = 4
    expand: int | None = None
    delete: int | None = None
    listens: ClassVar[int] = 0

    def check(self, layout: Layout, vocab: Vocab, *, constrained: bool) -> None:
        """Raise Unsupported for a row that is not for this rule."""
        if vocab.expand is None or vocab.delete is None:
            raise Unsupported("lengths='tokens' needs a model with tokens to expand and to delete; use 'try'")
        if constrained:
            raise Unsupported("a constraint has no place for tokens that resize a gap; use lengths='try'")

    def may(self, row: Growing) -> tuple[bool, bool]:
        """Whether the model may say that a position is to be two, or none."""
        most = row.gap.size + row.room
        return row.room > 0 and row.grown < BUDGET * most, row.gap.size > row.least

    def __call__(self, row: Growing, turn: Turn, i: int) -> Resize | None:
        """What becomes of a row, the `i`-th of a turn's plan."""
        plan, edit = turn.plan, turn.edit
        new = (plan.state[i] == State.OPEN) & (edit.state[i] == State.DONE)
        more, less = new & (edit.tokens[i] == self.expand), new & (edit.tokens[i] == self.delete)
        expands, deletes = self.may(row)
        void = (more if expands else torch.zeros_like(more)) | (less if deletes else torch.zeros_like(less))
        if not bool(void.any()):
            return None
        gone = set(plan.targets[i, less & void].tolist()[: row.gap.size - row.least])
        twice = set(plan.targets[i, more & void].tolist()[: row.room + len(gone)])
        kept = [at for at in range(len(row.layout.tokens)) if at not in gone]
        return Resize(source=[one for at in kept for one in ([at, NEW] if at in twice else [at])], void=void)
