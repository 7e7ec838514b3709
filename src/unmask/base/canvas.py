"""The text being written, and the only place where it changes.

A row is a number of positions. Each is given (FIXED), still to be written (OPEN), written (DONE), or not there
(ABSENT: the right end of a shorter row, or what lies behind an end of text). Generation is a canvas with its tail open,
infilling one with holes, refinement one with a span reopened. The number is fixed, but for rows that grow: between two
steps these may be `resized`.

It does not know models, policies or text.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.base import seeds
from unmask.base.step import Edit, Plan, Proposal, State

NEW = -1
"""Where a position of a resized row has been before: nowhere."""


class Counts(NamedTuple):
    """What is counted of rows, one number each; see `Canvas`. The first of them change with every step."""

    sealed: Tensor
    step: Tensor
    turn: Tensor
    forwards: Tensor
    took: Tensor
    idle: Tensor
    stride: Tensor
    seed: Tensor
    length: Tensor
    origin: Tensor
    age: Tensor


MOVING = Counts._fields.index("stride")
"""How many of the counts change with every step."""


class Canvas:
    """B rows of at most L positions.

    Attributes:
        tokens: (B, L) int64; the mask id (or noise) where OPEN.
        state: (B, L) uint8 of `State`.
        length: (B,) positions of each row that are not ABSENT at the start.
        origin: (B,) the first position that was OPEN at the start.
        sealed: (B,) the left-contiguous positions that no policy of this decoder may reopen any more.
        step: (B,) steps of its budget that the present region (the whole canvas or a block) has taken.
        stride: (B,) how many steps one forward takes; 1, unless a row is in a hurry.
        turn: (B,) steps taken in all; they key the row's noise.
        forwards: (B,) those of them for which the network was asked.
        idle: (B,) forwards that the present region has had with nothing OPEN in it.
        took: (B,) open positions that the present region's last step took; -1 before its first.
        eos: the end of text, as it is written down.
        ends: all ids that end a text, `eos` among them; whichever of them ends a row is written down as `eos`, so that
            readers of a canvas know one end of text.
        stops: (B,) bool, whether an end of text ends the row.
        seed: (B,) int64, what all noise of a row is keyed by.
        best, top: (B, L) what the model held for the best token at its last look, -1 where it has not looked, and the
            float64 nats that it gave it.
        age: (B,) forwards since keys and values of the whole row were made anew, that one included.
        moved: (B,) float64, how far what is kept of it has moved since then; see `unmask.decode.staleness`.
    """

    sealed: Tensor
    step: Tensor
    turn: Tensor
    forwards: Tensor
    took: Tensor
    idle: Tensor
    stride: Tensor
    seed: Tensor
    length: Tensor
    origin: Tensor
    age: Tensor

    def __init__(
        self,
        tokens: Tensor,
        state: Tensor,
        *,
        eos: int | None = None,
        stops: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> None:
        self.tokens, self.state = tokens.clone(), state.clone()
        length = (state != State.ABSENT).sum(1)
        self._counts = length.new_zeros(len(Counts._fields), len(length))
        for name, column in zip(Counts._fields, self._counts.unbind(0), strict=True):
            setattr(self, name, column)  # what is counted of a row is asked for at once, and so it lies together
        self.length.copy_(length)
        self.origin.copy_(self.filled)
        self.sealed.copy_(self.origin)
        self.stride.fill_(1)
        self.took.fill_(-1)
        self.moved = torch.zeros_like(self.length, dtype=torch.float64)
        self.eos = eos
        self.ends: tuple[int, ...] = () if eos is None else (eos,)
        self.stops = torch.zeros_like(self.length, dtype=torch.bool) if stops is None else stops
        self.best = torch.full_like(self.tokens, -1)
        self.top = torch.full_like(self.tokens, -torch.inf, dtype=torch.float64)
        if seed is not None:
            self.seed.copy_(seed)

    @classmethod
    def of(
        cls,
        rows: Sequence[tuple[Sequence[int], Sequence[bool]]],
        *,
        mask: int,
        eos: int | None = None,
        stop: bool = False,
        seeds: Sequence[int] | Tensor = (),
        device: torch.device | str = "cpu",
    ) -> Self:
        """A canvas from rows of (tokens, open): what stands at each position and whether it is to be written.

        OPEN positions are filled with `mask`; shorter rows end in ABSENT. With `stop`, an end of text ends a row.
        `seeds` holds one seed per row (default 0).
        """
        width = max(len(tokens) for tokens, _ in rows)
        tokens = torch.full((len(rows), width), mask, dtype=torch.int64)
        state = torch.full((len(rows), width), State.ABSENT, dtype=torch.uint8)
        for b, (ids, is_open) in enumerate(rows):
            hole = torch.tensor(is_open, dtype=torch.bool)
            tokens[b, : len(ids)] = torch.where(hole, mask, torch.tensor(ids, dtype=torch.int64))
            state[b, : len(ids)] = torch.where(hole, State.OPEN, State.FIXED).to(torch.uint8)
        stops = torch.full((len(rows),), stop, device=device)
        seed = torch.as_tensor(seeds, dtype=torch.int64).to(device) if len(seeds) else None
        return cls(tokens.to(device), state.to(device), eos=eos, stops=stops, seed=seed)

    @classmethod
    def blank(cls, rows: int, *, device: torch.device | str = "cpu") -> Self:
        """A canvas of rows that are not there yet; see `enter`."""
        tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        return cls(tokens, torch.full_like(tokens, State.ABSENT, dtype=torch.uint8))

    def enter(self, row: int, other: "Canvas") -> None:
        """Let the only row of another canvas stand in a row of this one, whoever stood there before."""
        if (more := other.tokens.shape[1] - self.tokens.shape[1]) > 0:
            self.tokens, self.best = F.pad(self.tokens, (0, more)), F.pad(self.best, (0, more), value=-1)
            self.top = F.pad(self.top, (0, more), value=-torch.inf)
            self.state = F.pad(self.state, (0, more), value=int(State.ABSENT))
        self.state[row] = State.ABSENT
        for name in ("tokens", "state", "best", "top"):
            getattr(self, name)[row, : other.tokens.shape[1]] = getattr(other, name)[0]
        regions = ("length", "origin", "sealed", "step", "stride", "idle", "took", "age", "moved")
        for name in (*regions, "turn", "forwards", "stops", "seed"):
            getattr(self, name)[row] = getattr(other, name)[0]

    def resized(self, row: int, source: Sequence[int], *, token: int, state: State = State.OPEN) -> "Canvas":
        """One row of this canvas, by itself, with positions put in or left out.

        Its turns go on, so noise, which is keyed by turn and position, is never drawn twice. Its region begins anew.
        New positions stand behind an OPEN one or behind the row's end, and only OPEN ones are left out, so what is
        sealed or written from the left stays where it is.

        Args:
            row: which.
            source: the position that each position of the new row was before; `NEW` where it was none.
            token, state: of the new ones.
        """
        at = torch.tensor(source, device=self.tokens.device)
        new, old = at == NEW, at.clamp(min=0)

        def taken(column: Tensor, filler: float) -> Tensor:
            return column[row, old].masked_fill(new, filler)[None]

        other = Canvas(
            taken(self.tokens, token),
            taken(self.state, int(state)),
            eos=self.eos,
            stops=self.stops[row : row + 1].clone(),
            seed=self.seed[row : row + 1].clone(),
        )
        other.ends = self.ends
        other.best, other.top = taken(self.best, -1), taken(self.top, -torch.inf)
        for name in ("stride", "turn", "forwards"):
            getattr(other, name)[0] = getattr(self, name)[row]
        for name in ("origin", "sealed"):
            getattr(other, name)[0] = border(source, int(getattr(self, name)[row]))
        return other

    @property
    def open(self) -> Tensor:
        """(B, L) bool: still to be written."""
        return self.state == State.OPEN

    @property
    def done(self) -> Tensor:
        """(B,) bool: nothing is open, and nothing may change any more."""
        return self.sealed >= self.length

    @property
    def filled(self) -> Tensor:
        """(B,) the left-contiguous positions that are not open."""
        return _first(self.open, self.length)

    def counts(self, rows: Tensor) -> Counts:
        """What is counted of some rows (R,), as it is now."""
        return Counts(*self._counts.index_select(1, rows).unbind(0))

    def cells(self, rows: Tensor, places: Tensor) -> Tensor:
        """Where places (R, T) of rows (R,) are in a column (B, L) of this canvas, for `take` and `put_`."""
        return rows[:, None] * self.tokens.shape[1] + places

    def noise(self, size: int) -> None:
        """Let OPEN positions hold uniform tokens below `size`, for models whose noise is other tokens."""
        at = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        drawn = (seeds.uniform(seeds.key(self.seed[:, None], "open", at)) * size).long()
        self.tokens = torch.where(self.open, drawn, self.tokens)

    def apply(self, plan: Plan, edit: Edit, offer: Proposal | None = None, spared: Tensor | None = None) -> None:
        """Write one step down. FIXED and ABSENT positions never change, whatever the edit says.

        `offer` is what the model holds of each target, for the next plan to know; `spared` (R,) bool are rows for which
        no network was asked.
        """
        rows, now, is_open = plan.rows, self.counts(plan.rows), plan.state == State.OPEN
        may = (plan.targets >= 0) & (is_open | (plan.state == State.DONE))
        which = may.flatten().nonzero()[:, 0]
        at = self.cells(rows, plan.targets).take(which)
        self.tokens.put_(at, edit.tokens.take(which))
        self.state.put_(at, edit.state.take(which))
        if offer is not None:
            self.best.put_(at, offer.best.take(which))
            self.top.put_(at, offer.top.take(which))
        self._end_at_eos(rows, edit.settled)
        first = _first(self.state[rows] == State.OPEN, now.length)
        settled = (first >= plan.end) & edit.settled
        moved = (
            torch.where(settled, first, now.sealed),
            (now.step + edit.steps * now.stride).masked_fill(settled, 0),
            now.turn + edit.steps,
            now.forwards + (1 if spared is None else ~spared),
            (is_open & (edit.state == State.DONE)).sum(1).masked_fill(settled, -1),
            (now.idle + 1).masked_fill(settled | is_open.any(1), 0),
        )
        self._counts[:MOVING].index_copy_(1, rows, torch.stack(moved))

    def stop(self, rows: Tensor) -> None:
        """End rows as they stand (budget spent, cancelled); masks that are left stay OPEN."""
        self.sealed[rows] = self.length[rows]

    def _end_at_eos(self, rows: Tensor, settled: Tensor) -> None:
        """What lies behind a written end of text, once all before it is written, is no part of the row any more.

        Only for rows whose tokens no policy takes back in this step's region (settled): a revised end of text is none.
        """
        may = self.stops[rows] & settled
        if self.eos is None or not bool(may.any()):
            return
        tokens, state = self.tokens[rows], self.state[rows]
        is_end = torch.isin(tokens, torch.tensor(self.ends, device=tokens.device))
        ended = is_end & (state == State.DONE) & may[:, None]
        if not bool(ended.any()):
            return
        ended &= (state == State.OPEN).cumsum(1) == 0
        behind = ended.cumsum(1) - ended.int() > 0
        self.tokens[rows] = torch.where(ended, self.eos, tokens)
        self.state[rows] = torch.where(behind & (state != State.FIXED), State.ABSENT, state.int()).to(torch.uint8)


def _first(is_open: Tensor, length: Tensor) -> Tensor:
    """(B,) the first position that is_open (B, L), or the row's length where there is none."""
    some, at = is_open.max(1)  # of equal ones the first
    return torch.where(some, at, length)


def border(source: Sequence[int], at: int) -> int:
    """Where the border before position `at` lies in a resized row; new positions belong to what is before them."""
    return next((i for i, old in enumerate(source) if old >= at), len(source))
