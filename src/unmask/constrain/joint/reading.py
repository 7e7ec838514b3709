"""What is known about one span: which states each border between its positions can be in, seen from either side.

Two sets of states belong to every border: those that the tokens on the left can lead to, and those from which the
tokens on the right can be completed. A token that changes makes the sets behind it on the left side and those before it
on the right side stale, up to where they come out as they were; they are computed anew once somebody asks about a
position that needs them, and not before. So a block in the middle of a long text costs what a block costs.

It does not know rows or canvases.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unmask.constrain.automata.automaton import END, Automaton, Ends

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


@dataclass(eq=False)
class Reading:
    """A span of W positions and what stands in it.

    Attributes:
        codes: (W,) what stands there.
        left, right: (W + 1, bytes) packed sets of states at its borders.
        stale_left, stale_right: (W,) bool, over which positions a set is to be led on: on the left side to the border
            behind the position, on the right side to the one before it.
    """

    span: Span
    rule: Ends
    codes: np.ndarray
    left: np.ndarray
    right: np.ndarray
    stale_left: np.ndarray
    stale_right: np.ndarray

    @classmethod
    def of(cls, span: Span) -> "Reading":
        """A span of which nothing is known yet: all open."""
        width, automaton, rule = span.stop - span.start, span.automaton, Ends(span.ends, span.least)
        early = min(span.least, width) if span.ends else 0  # what is remembered is of texts that may end
        right = np.stack([np.packbits(automaton.completable(width - at, rule)) for at in range(early, width + 1)])
        return cls(
            span=span,
            rule=rule,
            codes=np.full(width, OPEN, np.int64),
            left=automaton.reachable(width, rule),
            right=np.vstack([np.zeros((early, right.shape[1]), np.uint8), right]),
            stale_left=np.zeros(width, bool),
            stale_right=np.arange(width) < early,
        )

    @cached_property
    def may_end(self) -> np.ndarray:
        """(W,) bool: where a text may end instead of a further token."""
        return self.rule.over(np.arange(len(self.codes)))

    def update(self, codes: np.ndarray) -> None:
        """Take note of what stands in the span now."""
        changed = codes != self.codes
        if bool(changed.any()):
            self.codes = codes.copy()
            self.stale_left |= changed
            self.stale_right |= changed

    def before(self, borders: np.ndarray) -> np.ndarray:
        """(N, S + 1) bool: the states that the left can lead to."""
        self._lead_left(int(borders.max()))
        return self._unpacked(self.left[borders])

    def behind(self, borders: np.ndarray) -> np.ndarray:
        """(N, S + 1) bool: the states from which the right can be completed."""
        self.lead_right(int(borders.min()))
        return self._unpacked(self.right[borders])

    def _lead_left(self, border: int) -> None:
        """Make the left sets up to a border those of what stands there."""
        at = _first(self.stale_left[:border])
        while at >= 0:
            states = self._unpacked(self.left[at])
            fresh = np.packbits(self._forth(states, at))
            self.stale_left[at] = False
            if not np.array_equal(fresh, self.left[at + 1]):
                self.left[at + 1] = fresh
                self.stale_left[at + 1 : at + 2] = True
            step = _first(self.stale_left[at + 1 : border])
            at = at + 1 + step if step >= 0 else -1

    def lead_right(self, border: int) -> None:
        """Make the right sets from a border on those of what stands there."""
        step = _first(self.stale_right[border:][::-1])
        at = len(self.codes) - 1 - step if step >= 0 else -1
        while at >= border:
            fresh = np.packbits(self._back(self._unpacked(self.right[at + 1]), at))
            self.stale_right[at] = False
            if not np.array_equal(fresh, self.right[at]):
                self.right[at] = fresh
                if at > 0:
                    self.stale_right[at - 1] = True
            step = _first(self.stale_right[border:at][::-1])
            at = at - 1 - step if step >= 0 else -1

    def _unpacked(self, bits: np.ndarray) -> np.ndarray:
        return np.unpackbits(bits, axis=-1, count=self.span.automaton.size).view(bool)

    def _forth(self, states: np.ndarray, offset: int) -> np.ndarray:
        return self.span.automaton.forth(states, int(self.codes[offset]), may_end=self.rule.at(offset))

    def _back(self, states: np.ndarray, offset: int) -> np.ndarray:
        return self.span.automaton.back(states, int(self.codes[offset]), may_end=self.rule.at(offset))

    def between(self, offsets: np.ndarray) -> np.ndarray:
        """(M + 1, bytes) packed states from the first to behind the last of some offsets, taken as open.

        They are those that can be completed, and where these offsets are open as it is, that can be reached as well.
        """
        first, last = int(offsets[0]), int(offsets[-1]) + 1
        if bool((self.codes[offsets] == OPEN).all()):
            self._lead_left(last)
            self.lead_right(first)
            return self.left[first : last + 1] & self.right[first : last + 1]
        found = np.empty((last - first + 1, self.right.shape[1]), np.uint8)
        states, codes = self.behind(np.array([last]))[0], self.codes[first:last].copy()
        codes[offsets - first] = OPEN
        found[-1] = np.packbits(states)
        for at in range(last - 1, first - 1, -1):
            states = self.span.automaton.back(states, int(codes[at - first]), may_end=self.rule.at(at))
            found[at - first] = np.packbits(states)
        return found

    @property
    def feasible(self) -> bool:
        """Whether all open positions can be filled."""
        stale = np.flatnonzero(self.stale_right)
        border = np.array([stale[-1] + 1 if len(stale) else 0])  # any would do, and from here on the right is known
        return bool((self.before(border) & self.behind(border)).any())

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


def allowed(cells: Sequence[tuple[Reading, np.ndarray]]) -> np.ndarray:
    """(N, C) bool: the classes that may stand at some offsets of spans of one automaton, given all other positions.

    Args:
        cells: spans and the offsets into each, N in all; what is said of them comes in this order.
    """
    automaton = cells[0][0].span.automaton
    e, num = automaton.edges, sum(len(offsets) for _, offsets in cells)
    left = np.concatenate([read.before(offsets) for read, offsets in cells])
    right = np.concatenate([read.behind(offsets + 1) for read, offsets in cells])
    may_end = np.concatenate([read.may_end[offsets] for read, offsets in cells])
    out = np.zeros((automaton.num_classes, num), bool)
    out[END] = right[:, -1] & (left[:, automaton.accepting].any(1) & may_end | left[:, -1])
    if len(e.label_source):
        before, behind = _words(left), _words(right)
        ways = before.take(e.label_source, axis=0)
        ways &= behind.take(e.label_target, axis=0)
        held = np.bitwise_or.reduceat(ways, e.label_first, axis=0)
        classes, begins = automaton.members
        bits = np.bitwise_or.reduceat(held.take(e.class_label, axis=0), begins, axis=0)
        some = np.unpackbits(bits.view(np.uint8), axis=1, count=num)
        out[classes] = some.view(bool)
    return out.T


def _first(where: np.ndarray) -> int:
    """The first place that is true; -1 where none is."""
    at = int(where.argmax()) if len(where) else 0
    return at if len(where) and where[at] else -1


def _words(sets: np.ndarray) -> np.ndarray:
    """(S + 1, ceil(N / 64)) uint64: per state, a bit for each of N sets (N, S + 1)."""
    bits = np.packbits(np.ascontiguousarray(sets.T), axis=1)
    out = np.zeros((len(bits), -(-bits.shape[1] // 8) * 8), np.uint8)
    out[:, : bits.shape[1]] = bits
    return out.view(np.uint64)
