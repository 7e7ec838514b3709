"""Constraints on rows of a canvas: what may stand at each position, given all that stands around it.

A span is a run of positions that an automaton reads. For every border between positions two sets of states are kept:
those that the tokens on the left can lead to, and those from which the tokens on the right can be completed. A token
may stand at a position if it leads from the left set into the right one, and that is exact: it says nothing less and
nothing more than that the row can still be completed. When tokens change, sets are computed anew from there on, up to
where they come out as they were.

It does not know models, policies or text; whoever decodes asks.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from unmask.base.errors import BadInput
from unmask.base.step import State
from unmask.constrain import joint
from unmask.constrain.automaton import END, NEVER, Automaton, Ends

OPEN = -1
"""Code of a position whose token is not known; others have the class of their token."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span:
    """Positions `start` to `stop` (exclusive) of a row, and the automaton that reads them.

    Args:
        automaton: what the tokens there must spell.
        start, stop: canvas positions.
        ends: whether an end of text may stand in it, with nothing but ends (or ABSENT positions) behind.
        least: tokens before an end of text may stand.
    """

    automaton: Automaton
    start: int
    stop: int
    ends: bool = False
    least: int = 0


@dataclass(slots=True, eq=False)
class Reading:
    """What is known about a span: codes (W,), and state sets at its W + 1 borders, as bits."""

    span: Span
    rule: Ends
    codes: np.ndarray
    left: list[np.ndarray] = field(default_factory=list)
    right: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, span: Span) -> "Reading":
        """A span of which nothing is known yet: all open."""
        width, automaton = span.stop - span.start, span.automaton
        rule = Ends(span.ends, span.least)
        read = cls(span, rule, np.full(width, OPEN, np.int64))
        read.left = [np.packbits(automaton.start)] * (width + 1)
        for offset in range(width):
            read.left[offset + 1] = np.packbits(read._forth(offset))
        read.right = [np.packbits(automaton.goal(rule))] * (width + 1)
        for offset in range(width, -1, -1):
            if offset >= min(span.least, width) or not span.ends:
                read.right[offset] = np.packbits(automaton.completable(width - offset, rule))
            else:
                read.right[offset] = np.packbits(read._back(offset))
        return read

    def sets(self, borders: Sequence[np.ndarray], at: np.ndarray | slice) -> np.ndarray:
        """(N, S + 1) bool: some of the sets."""
        bits = np.stack(borders[at] if isinstance(at, slice) else [borders[i] for i in at])
        return np.unpackbits(bits, axis=-1, count=self.span.automaton.size).astype(bool)

    def update(self, codes: np.ndarray) -> None:
        """Take note of what stands in the span now."""
        changed = np.flatnonzero(codes != self.codes)
        if not len(changed):
            return
        self.codes = codes.copy()
        for order, borders, step, shift in (
            (changed, self.left, self._forth, 1),
            (changed[::-1], self.right, self._back, 0),
        ):
            todo = [int(offset) for offset in order]
            direction, at = (1, todo[0]) if shift else (-1, todo[0])
            ahead = iter(todo[1:])
            coming = next(ahead, None)
            while 0 <= at < len(codes):
                if at == coming:
                    coming = next(ahead, None)
                fresh = np.packbits(step(at))
                same = np.array_equal(fresh, borders[at + shift])
                borders[at + shift] = fresh
                if same and coming is None:
                    break
                at = coming if same and coming is not None else at + direction

    def _forth(self, offset: int) -> np.ndarray:
        states = np.unpackbits(self.left[offset], count=self.span.automaton.size).astype(bool)
        return self.span.automaton.forth(states, int(self.codes[offset]), may_end=self.rule.at(offset))

    def _back(self, offset: int) -> np.ndarray:
        states = np.unpackbits(self.right[offset + 1], count=self.span.automaton.size).astype(bool)
        return self.span.automaton.back(states, int(self.codes[offset]), may_end=self.rule.at(offset))

    @property
    def feasible(self) -> bool:
        """Whether all open positions can be filled."""
        return bool((self.left[0] & self.right[0]).any())

    def allowed(self, offsets: np.ndarray) -> np.ndarray:
        """(N, C) bool: the classes that may stand at each of these offsets, given all other positions."""
        automaton, e = self.span.automaton, self.span.automaton.edges
        left, right = self.sets(self.left, offsets), self.sets(self.right, offsets + 1)
        out = np.zeros((automaton.num_classes, len(offsets)), bool)
        may_end = np.array([self.rule.at(int(offset)) for offset in offsets])
        out[END] = right[:, -1] & ((left[:, :-1] & automaton.accept[:-1]).any(1) & may_end | left[:, -1])
        before, behind = _words(left), _words(right)
        ways = before[e.source] & behind[e.target]
        if len(ways):
            held = np.bitwise_or.reduceat(ways[e.by_label], e.label_first, axis=0)
            in_order = e.by_class
            classes = e.member_class[in_order]
            begins = np.flatnonzero(np.append(True, classes[1:] != classes[:-1]))
            bits = np.bitwise_or.reduceat(held[e.member_label[in_order]], begins, axis=0)
            out[classes[begins]] = np.unpackbits(bits.view(np.uint8), axis=1, count=len(offsets)).astype(bool)
        return out.T

    def why(self, spell: Sequence[bytes], tokens: np.ndarray) -> str:
        """Why no text fits; spans that fit have no reason."""
        span, width = self.span, len(self.codes)
        blank = Reading.of(span)
        shortest = span.automaton.shortest
        if not blank.feasible:
            if shortest < 0:
                return "no text of any length fits the constraint"
            if shortest > width:
                return f"the shortest text that fits has {shortest} tokens, and there is room for {width}"
            return f"no text of {'at least ' + str(span.least) if span.ends else 'exactly'} {width} tokens fits"
        codes = blank.codes
        for offset in np.flatnonzero(self.codes != OPEN):
            codes = codes.copy()
            codes[offset] = self.codes[offset]
            blank.update(codes)
            if not blank.feasible:
                token = int(tokens[offset])
                text = f" ({spell[token]!r})" if spell[token] else ""
                return (
                    f"the token {token}{text} at position {span.start + int(offset)} contradicts the "
                    f"constraint, given what stands before it and {width - int(offset) - 1} positions behind it"
                )
        raise AssertionError("a span without a reason fits")


def _words(sets: np.ndarray) -> np.ndarray:
    """(S + 1, ceil(N / 64)) uint64: per state, a bit for each of N sets (N, S + 1)."""
    bits = np.packbits(sets.T, axis=1)
    return np.ascontiguousarray(np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))).view(np.uint64)


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
        for _, at in self._touched(rows, positions):
            out[at] = True
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
        for read, at in self._touched(rows, positions):
            offsets = positions[at].cpu().numpy() - read.span.start
            kinds, which = np.unique(read.allowed(offsets), axis=0, return_inverse=True)
            masks = torch.from_numpy(kinds)[:, torch.from_numpy(read.span.automaton.class_of)]
            out[at] = masks[torch.from_numpy(which.reshape(-1))]
        return out.to(rows.device)

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
        free = torch.ones_like(rows, dtype=torch.bool)
        for read, at in self._touched(rows, positions):
            offsets, free[at] = positions[at].cpu().numpy() - read.span.start, False
            assert bool((np.diff(offsets) > 0).all()), "positions of a row rise"
            if keys is None:
                tokens = joint.best(read, offsets, log_probs[at])
            else:
                tokens = joint.draw(read, offsets, log_probs[at], keys[0][at[0]], keys[1][at[0]])
            found[at] = torch.from_numpy(tokens).to(found.device)
        if bool(free.any()):
            some = None if keys is None else (keys[0][free], keys[1][free])
            found[free] = joint.alone(log_probs[free], positions[free], some)
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
                keep = joint.kept(read, done, 1 - weight / (2 * (len(done) + 1)))
                if keep is None:
                    raise BadInput(
                        f"row {row} can't be repaired: {read.why(self.spell, tokens[row, there].cpu().numpy())}"
                    )
                out[row, torch.from_numpy(done[~keep] + read.span.start)] = True
        return out.to(state.device)

    def _touched(self, rows: Tensor, positions: Tensor) -> list[tuple[Reading, Tensor]]:
        """Every span that some of (N,) positions lie in, and which."""
        order = rows.argsort(stable=True)
        which, counts = rows[order].unique_consecutive(return_counts=True)
        found = []
        for row, own in zip(which.tolist(), order.split(counts.tolist()), strict=True):
            for read in self._rows.get(row, ()):
                at = positions[own]
                inside = own[(at >= read.span.start) & (at < read.span.stop)]
                if len(inside):
                    found.append((read, inside))
        return found


def _codes(automaton: Automaton, tokens: np.ndarray, state: np.ndarray) -> np.ndarray:
    """(W,) what stands in a span: OPEN, or the class of the token; what is ABSENT is an end of text."""
    codes = np.where(state == State.OPEN, OPEN, NEVER)
    known = (state != State.OPEN) & (state != State.ABSENT)
    codes[known] = automaton.class_of[tokens[known]]
    codes[state == State.ABSENT] = END
    return codes
