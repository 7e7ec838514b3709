"""Constraints on rows of a canvas: what may stand at each position, given all that stands around it.

A span is a run of positions that an automaton reads. For every border between positions two sets of states are kept:
those that the tokens on the left can lead to, and those from which the tokens on the right can be completed. A token
may stand at a position if it leads from the left set into the right one, and that is exact: it says nothing less and
nothing more than that the row can still be completed (`reading`).

It does not know models, policies or text; whoever decodes asks.
"""

from collections.abc import Iterable, Sequence, Set

import numpy as np
import torch
from torch import Tensor

from unmask.base.errors import BadInput
from unmask.base.step import State
from unmask.constrain.automata.automaton import END, NEVER, Automaton
from unmask.constrain.joint.nats import alone
from unmask.constrain.joint.question import Lists, Part, Question, kept
from unmask.constrain.joint.reading import OPEN, Reading, Span

__all__ = ["Holes", "Span"]

_HEARD = 1 << 18
"""Log-probabilities that are sorted by class at once, so that they stay near the processor."""


class Holes:
    """The constraints of all rows of a canvas, free rows among them.

    `update` reads the canvas, once per step and after every edit; everything else speaks of what it read last. Row
    and position arguments are int64 (N,); positions that no span covers are free.

    Args:
        spell: the bytes of each token (V), for reasons; there before the first span.
    """

    def __init__(self, spell: Sequence[bytes] = ()) -> None:
        self.spell = spell
        self._rows: dict[int, list[Reading]] = {}
        self._lists = Lists()

    def enter(self, row: int, spans: Sequence[Span]) -> None:
        """Let these spans hold for a row, and none that it had before; without spans the row is free.

        Raises:
            BadInput: spans that overlap or hold no position.
        """
        ordered = sorted(spans, key=lambda span: span.start)
        for one, other in zip(ordered, [*ordered[1:], None], strict=False):
            if one.start >= one.stop or (other is not None and other.start < one.stop):
                raise BadInput(f"spans must not overlap or be empty, got {one.start} to {one.stop} in row {row}")
        self._rows.pop(row, None)
        if ordered:
            self._rows[row] = [Reading.of(span) for span in ordered]

    def leave(self, row: int) -> None:
        """Forget a row."""
        self._rows.pop(row, None)

    @property
    def rows(self) -> Set[int]:
        """Those that spans hold for."""
        return self._rows.keys()

    def covers(self, rows: Tensor, positions: Tensor) -> Tensor:
        """(N,) bool: whether some span holds for a position."""
        out = torch.zeros_like(positions, dtype=torch.bool)
        for part in self._parts(rows, positions):
            out[torch.from_numpy(part.at)] = True
        return out

    def update(self, tokens: Tensor, state: Tensor, rows: Iterable[int] | None = None) -> None:
        """Take note of a canvas: tokens (B, L), state (B, L) of `State`; OPEN positions are not known.

        `rows` are those to look at; None is all.
        """
        rows = sorted(self._rows.keys() if rows is None else self._rows.keys() & set(rows))
        if not rows:
            return
        at = torch.tensor(rows, device=tokens.device)
        ids, states = tokens[at].cpu().numpy(), state[at].cpu().numpy()
        for i, row in enumerate(rows):
            for read in self._rows[row]:
                there = slice(read.span.start, read.span.stop)
                read.update(_codes(read.span.automaton, ids[i, there], states[i, there]))

    def feasible(self, rows: Tensor) -> Tensor:
        """(R,) bool: whether all open positions of a row can be filled."""
        return torch.tensor([all(read.feasible for read in self._rows.get(int(row), ())) for row in rows])

    def why(self, row: int, tokens: Tensor) -> str:
        """Why a row can't be filled, in words: which length, or which token at which position; tokens are (L,)."""
        for read in self._rows.get(row, ()):
            if not read.feasible:
                return read.why(self.spell, tokens[read.span.start : read.span.stop].cpu().numpy())
        raise AssertionError(f"row {row} can be filled")

    def allow(self, rows: Tensor, positions: Tensor) -> Tensor:
        """(N, V) bool: the tokens with which the row can still be completed, all other positions as they are.

        The position itself counts as open, so a written one is told what could stand there instead.
        """
        out = torch.ones(len(rows), len(self.spell), dtype=torch.bool)
        question = self.ask(rows, positions)
        if len(some := question.cells):
            out[torch.from_numpy(some)] = question.allowed(some)
        return out.to(rows.device)

    def ask(self, rows: Tensor, positions: Tensor) -> Question:
        """A question about cells that are open or will be asked about alone; those of a row in rising order."""
        return Question(self._parts(rows, positions), len(rows), self._lists, narrow=True)

    def fill(self, rows: Tensor, positions: Tensor, log_probs: Tensor) -> Tensor:
        """(N,) the tokens at these positions that are together the most probable of all that can be completed.

        Positions count as open; those of a row must be in rising order. Open positions that are not asked about may
        take any token, and all others stand as they are. Any subset of the answer may be written, as long as nothing
        that stands is changed. A token of probability zero is taken only where nothing else can be completed.

        Args:
            log_probs: (N, V) nats.
        """
        return self._together(rows, positions, log_probs, None)

    def sample(self, rows: Tensor, positions: Tensor, log_probs: Tensor, seed: Tensor, turn: Tensor) -> Tensor:
        """(N,) tokens drawn from the product of the distributions, given that the row can be completed.

        Exact: a filling has its probability among all fillings of these positions that can be completed. Noise is
        keyed by (seed, turn, position). Arguments as in `fill`; `seed` and `turn` are (N,).
        """
        return self._together(rows, positions, log_probs, (seed, turn))

    def _together(
        self, rows: Tensor, positions: Tensor, log_probs: Tensor, keys: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        found = torch.zeros_like(positions)
        question = Question(self._parts(rows, positions), len(rows), self._lists, narrow=False)
        held = torch.zeros(len(rows), dtype=torch.bool)
        held[torch.from_numpy(question.cells)] = True
        for cells in held.nonzero()[:, 0].split(max(1, _HEARD // log_probs.shape[1])):
            draws, said = np.full(len(cells), keys is not None), log_probs[cells.to(log_probs.device)]
            question.hear(cells.numpy(), said, draws.astype(np.float64), best=~draws)
        if keys is None:
            told = question.fill(held.numpy())
        else:
            told = question.sample(held.numpy(), *keys)
        found[held.to(found.device)] = torch.from_numpy(told).to(found.device)
        free = (~held).to(found.device)
        if bool(free.any()):
            some = None if keys is None else (keys[0][free], keys[1][free])
            found[free] = alone(log_probs[free], positions[free], some)
        return found

    def repair(self, tokens: Tensor, state: Tensor, doubt: Tensor | None = None) -> Tensor:
        """(B, L) bool: the DONE positions to open again so that every row can be completed; as few as there can be.

        It takes note of the canvas as it is given; once positions were opened, `update` it again.

        Args:
            tokens, state: (B, L), as after an edit; FIXED positions never change.
            doubt: (B, L) how gladly each position is given up, from 0 to 1; of two ways that open equally many, the
                one of more doubt is taken.
        Raises:
            BadInput: a row can't be completed whatever is opened.
        """
        self.update(tokens, state)
        out = torch.zeros(state.shape, dtype=torch.bool)
        for row, reads in self._rows.items():
            for read in reads:
                if read.feasible:
                    continue
                there = slice(read.span.start, read.span.stop)
                done = np.flatnonzero((state[row, there] == State.DONE).cpu().numpy())
                weight = np.zeros(len(done)) if doubt is None else doubt[row, there].cpu().numpy()[done]
                keep = kept(read, done, 1 - weight / (2 * (len(done) + 1)))
                if keep is None:
                    raise BadInput(
                        f"row {row} can't be repaired: {read.why(self.spell, tokens[row, there].cpu().numpy())}"
                    )
                out[row, torch.from_numpy(done[~keep] + read.span.start)] = True
        return out.to(state.device)

    def _parts(self, rows: Tensor, positions: Tensor) -> list[Part]:
        """Every span that some of (N,) cells lie in, and which."""
        owner, at = rows.cpu().numpy(), positions.cpu().numpy()
        order = owner.argsort(kind="stable")
        begins = np.flatnonzero(np.diff(owner[order], prepend=-1))
        found = []
        for own in np.split(order, begins[1:]):
            for read in self._rows.get(int(owner[own[0]]), ()) if len(own) else ():
                there = at[own]
                inside = own[(there >= read.span.start) & (there < read.span.stop)]
                if len(inside):
                    offsets = at[inside] - read.span.start
                    found.append(Part(read, inside, offsets))
        return found


def _codes(automaton: Automaton, tokens: np.ndarray, state: np.ndarray) -> np.ndarray:
    """(W,) what stands in a span: OPEN, or the class of the token; what is ABSENT is an end of text."""
    codes = np.where(state == State.OPEN, OPEN, NEVER)
    known = (state != State.OPEN) & (state != State.ABSENT)
    codes[known] = automaton.class_of[tokens[known]]
    codes[state == State.ABSENT] = END
    return codes
