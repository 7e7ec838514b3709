"""What one turn of the loop is made of: a plan, a proposal, an edit.

Letters, everywhere with one meaning: B rows, R rows of this step, L positions of a canvas, W positions fed, T targets,
V vocabulary, D width, H heads, K key/value heads, S key slots, N flat targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.base.attend import NOBODY, Attend


class State(IntEnum):
    """What a canvas position is."""

    FIXED = 0
    """given"""
    OPEN = 1
    """to be written"""
    DONE = 2
    """written; a decoder that revises may reopen it"""
    ABSENT = 3
    """no position here: the end of a shorter row, or what lies behind an end of text"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one forward looks at.

    Args:
        rows: (R,) rows of the canvas that take part.
        positions: (R, W) canvas positions fed: a run of them, then those that shadows stand for; -1 where nothing is.
        tokens: (R, W) the tokens fed there.
        slots: (R, W) where they stand in the row: at their positions, shadows behind the text.
        keep: (R, W) bool, whose keys and values are kept: final ones, or stale ones where the window is approximate.
        attend: who may see whom, for these rows.
        targets: (R, T) canvas positions that an offer is asked for; -1 at the end of rows that ask for fewer.
        state: (R, T) uint8, what each target is now.
        standing: (R, T) the token that stands there now.
        last: (R, T) the token that the model held for the best one at the last look; -1 where there was none.
        source: (R, T) which of the W speaks of each target.
        turn: (R, T) what counts the noise of each target: the steps that the row had taken before the one that decides.
        level: (R, T) float64 noise level of each target at the step that decides about it.
        t, s: (R,) float64 noise level now and after this step, 1 noise, 0 clean.
        steps: (R,) of the region's budget in all, of which a forward takes one, or more where it is in a hurry.
        left: (R,) forwards that the budget has left after this one; negative once it is overdrawn.
        due: (R,) bool, whether the step has to take something; where not, it may wait for surer offers.
        took: (R,) open targets that the region's last step took; -1 at its first.
        seed: (R,) key of the row's noise.
        idle: (R,) forwards that the region has had with nothing OPEN in it.
        end: (R,) end of the region (exclusive) that is sealed once it has no OPEN position.
        among: (R,) the first of the places that equal scores are ranked among; the last is the last one that is fed.
    """

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    slots: Tensor
    keep: Tensor
    attend: Attend
    targets: Tensor
    state: Tensor
    standing: Tensor
    last: Tensor
    source: Tensor
    turn: Tensor
    level: Tensor
    t: Tensor
    s: Tensor
    steps: Tensor
    left: Tensor
    due: Tensor
    took: Tensor
    seed: Tensor
    idle: Tensor
    end: Tensor
    among: Tensor

    def take(self, index: Tensor) -> Self:
        """The plan of some of its rows (an index into them)."""
        return replace(
            self,
            attend=self.attend.rows(index),
            **{f.name: getattr(self, f.name)[index] for f in fields(self) if f.name != "attend"},
        )

    @classmethod
    def join(cls, plans: Sequence[Self]) -> Self:
        """One plan for the rows of several, one after the other."""
        if len(plans) == 1:
            return plans[0]
        columns = {f.name: [getattr(plan, f.name) for plan in plans] for f in fields(cls) if f.name != "attend"}
        joined = {name: torch.cat(_even(some, _FILLERS.get(name, 0))) for name, some in columns.items()}
        rules = [(plan.attend, len(plan.rows)) for plan in plans]
        return cls(attend=Attend.join(rules, joined["rows"].device), **joined)


_FILLERS = {"positions": NOBODY, "slots": NOBODY, "targets": NOBODY, "state": int(State.ABSENT), "last": -1}


def _even(columns: list[Tensor], filler: int) -> list[Tensor]:
    """Columns (R,) as they are; (R, W) made as wide as the widest."""
    if columns[0].dim() == 1:
        return columns
    width = max(column.shape[1] for column in columns)
    return [F.pad(column, (0, width - column.shape[1]), value=filler) for column in columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What the model offers at every target.

    Args:
        asked: (R, T) bool, whether an offer was computed; the rest holds fillers that no policy may take.
        is_open: (R, T) bool, asked and still to be written.
        tokens: (R, T) candidate.
        log_prob: (R, T) float64 nats, of the candidate.
        best, top: (R, T) the most probable token, and its float64 nats.
        entropy: (R, T) float64 nats, of the distribution; None where no policy reads it.
        margin: (R, T) float64, probability of the best minus that of the second best token; None as well.
        standing: (R, T) float64 nats, log-probability of the token that stands there now.
        mass: (R, T) float64 nats, what all clean tokens together have before they are made a distribution: an exact
            score gives 0. None for networks that say log-probabilities, where it is 0.
        ranked, ranked_log_prob: (R, T, K) the most probable tokens, falling, and their float64 nats; -inf behind the
            last one that a row asked for, or that may stand there. None where no row asked for any.
    """

    asked: Tensor
    is_open: Tensor
    tokens: Tensor
    log_prob: Tensor
    best: Tensor
    top: Tensor
    standing: Tensor
    entropy: Tensor | None = None
    margin: Tensor | None = None
    mass: Tensor | None = None
    ranked: Tensor | None = None
    ranked_log_prob: Tensor | None = None

    def take(self, index: Tensor) -> Self:
        """What is offered to some of the rows (an index into them)."""
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: column[index] for name, column in columns.items() if column is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """What changes: token and state of every target after this step.

    `settled` (R,) says whether a region without OPEN positions may be sealed; a policy that still revises says False.
    `steps` (R,) are those that this one stands for: more than one where guessed steps turned out right. `misread` (R,)
    is the position from which on keys and values were kept of text that is none; None where there is no such text.
    """

    tokens: Tensor
    state: Tensor
    settled: Tensor
    steps: Tensor
    misread: Tensor | None = None

    @classmethod
    def nothing(cls, plan: Plan) -> Self:
        """The edit that leaves everything as it stands."""
        one = torch.ones_like(plan.rows)
        return cls(tokens=plan.standing, state=plan.state, settled=one.bool(), steps=one)

    def accept(self, where: Tensor, tokens: Tensor) -> Self:
        """Write `tokens` where `where`; those positions are DONE."""
        state = self.state.masked_fill(where, State.DONE)
        return replace(self, tokens=torch.where(where, tokens, self.tokens), state=state)

    def reopen(self, where: Tensor, tokens: Tensor | int) -> Self:
        """Take positions back: OPEN again, holding `tokens` (the mask, or noise)."""
        tokens = torch.as_tensor(tokens, dtype=self.tokens.dtype, device=self.tokens.device)
        state = self.state.masked_fill(where, State.OPEN)
        return replace(self, tokens=torch.where(where, tokens, self.tokens), state=state)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of the loop: what was looked at, what was offered, what was written."""

    plan: Plan
    offer: Proposal
    edit: Edit
