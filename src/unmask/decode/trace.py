"""What happened to every position: which step wrote it, how sure the model was, what was taken back."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor

from unmask.base.canvas import Canvas
from unmask.base.step import Proposal, State, Turn

Kind = Literal["commit", "reopen", "edit"]


@dataclass(frozen=True, slots=True)
class Change:
    """One position changed: committed (written), reopened (taken back) or edited (written over).

    `position` counts canvas positions, `log_prob` is in nats and belongs to the token written, under what the model saw
    at that step. `best` is the token that the model held for the best one then, `top` its log-probability. `ranked` are
    the most probable tokens then and their nats, falling, as many as were asked for and might stand there.
    """

    step: int
    position: int
    token: int
    kind: Kind
    log_prob: float
    best: int
    top: float
    ranked: tuple[tuple[int, float], ...] = ()


class Trace:
    """All changes of one canvas row, in order, and what is known of its final tokens."""

    def __init__(self) -> None:
        self.changes: list[Change] = []

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)

    @property
    def num_edits(self) -> int:
        """How many written tokens were taken back or written over."""
        return sum(change.kind != "commit" for change in self.changes)

    def until(self, stop: int) -> "Trace":
        """The changes before a position."""
        part = Trace()
        part.changes = [change for change in self.changes if change.position < stop]
        return part

    def resized(self, source: Sequence[int]) -> None:
        """Tell of positions by what they are called now; `source` says what each was called before."""
        now = {old: at for at, old in enumerate(source)}
        self.changes = [replace(c, position=now[c.position]) for c in self.changes if c.position in now]

    def last(self) -> dict[int, Change]:
        """The change that gave each position its final token."""
        return {c.position: c for c in self.changes if c.kind != "reopen"}


def record(traces: Mapping[int, Trace], canvas: Canvas, turn: Turn) -> None:
    """Add one turn to the traces of all rows (a trace per canvas row)."""
    plan, edit, offer = turn.plan, turn.edit, turn.offer
    tokens, after, before = _numbers(edit.tokens), _numbers(edit.state), _numbers(plan.state)
    written = (tokens != _numbers(plan.standing)) & (after != State.OPEN)  # what an open position holds is no text
    r, i = (_numbers(offer.asked) & (written | (after != before))).nonzero()
    turns = _numbers(plan.turn)
    if (_numbers(edit.steps) > 1).any():  # several steps at once are told in their order
        order = turns[r, i].argsort(kind="stable")
        r, i = r[order], i[order]
    token, best, top = tokens[r, i], _numbers(offer.best)[r, i], _numbers(offer.top)[r, i]
    other = np.where(token == best, top, _numbers(offer.standing)[r, i])
    columns = (
        _numbers(plan.rows)[r],
        turns[r, i],
        _numbers(plan.targets)[r, i],
        token,
        before[r, i],
        after[r, i],
        np.where(token == _numbers(offer.tokens)[r, i], _numbers(offer.log_prob)[r, i], other),
        best,
        top,
    )
    ranks = _ranks(offer, r, i)
    for row, step, position, token, was, now, *held in zip(*(c.tolist() for c in columns), ranks, strict=True):
        kind: Kind = "reopen" if now == State.OPEN else "edit" if was == State.DONE else "commit"
        traces[row].changes.append(Change(step, position, token, kind, *held))


def _numbers(column: Tensor) -> np.ndarray:
    """A column as numpy has it: what becomes a person's numbers anyway is sorted out faster there, being little."""
    found: np.ndarray = column.cpu().numpy()
    return found


def _ranks(offer: Proposal, r: np.ndarray, i: np.ndarray) -> list[tuple[tuple[int, float], ...]]:
    """The most probable tokens of some targets (N,), and their nats."""
    if offer.ranked is None or offer.ranked_log_prob is None:
        return [()] * len(r)
    pairs = zip(*(_numbers(x)[r, i].tolist() for x in (offer.ranked, offer.ranked_log_prob)), strict=True)
    return [tuple(one for one in zip(*pair, strict=True) if one[1] > -math.inf) for pair in pairs]
