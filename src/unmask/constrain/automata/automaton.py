"""An automaton over tokens: what one token, or any token, makes of a set of states.

States are those of the bytes and one more, the last, in which a text has ended: only ends of text lead there and on.
Tokens are met as classes of equal behaviour, and ways between states as pairs that share few sets of classes (labels),
so all work grows with pairs and labels and not with the vocabulary. It does not know rows or positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np

from unmask.constrain.automata.machine import DEAD, ragged

NEVER, END = 0, 1
"""Classes of the tokens that are never possible, and of those that end a text."""

DENSE = 3
"""From this share of all pairs on (one in so many) all are looked at in order, which costs less than to pick some."""


@dataclass(frozen=True, slots=True)
class Edges:
    """Pairs of states that text tokens join, P in all, and G labels: sets of classes.

    Args:
        target, label: (P,) where each pair leads and which classes join it, sorted by source.
        first: (S + 1,) where the pairs of each source begin.
        back_source, back_label: (P,) the same pairs from behind, sorted by target.
        back_first: (S + 1,) where the pairs of each target begin.
        label_source, label_target: (P,) once more, sorted by label, and `label_first` (G,) where each label's begin.
        member_class: (M,) the classes of each label, and `member_first` (G + 1,) where each label's begin.
        by_class, class_label: (M,) the classes in rising order, and the label that each is a member of.
    """

    target: np.ndarray
    label: np.ndarray
    first: np.ndarray
    back_source: np.ndarray
    back_label: np.ndarray
    back_first: np.ndarray
    label_source: np.ndarray
    label_target: np.ndarray
    label_first: np.ndarray
    member_class: np.ndarray
    member_first: np.ndarray
    by_class: np.ndarray
    class_label: np.ndarray

    @classmethod
    def of(
        cls, source: np.ndarray, target: np.ndarray, label: np.ndarray, members: Sequence[np.ndarray], size: int
    ) -> Self:
        """From pairs sorted by source, and the classes of each label."""
        back, by_label = np.argsort(target, kind="stable"), np.argsort(label, kind="stable")
        states, counts = np.arange(size + 1), np.array([len(some) for some in members], np.int64)
        member_class = np.concatenate([np.zeros(0, np.int64), *members]).astype(np.int64)
        by_class = np.argsort(member_class, kind="stable")
        source, target, label = (x.astype(np.int64) for x in (source, target, label))
        return cls(
            target=target,
            label=label,
            first=np.searchsorted(source, states),
            back_source=source[back],
            back_label=label[back],
            back_first=np.searchsorted(target[back], states),
            label_source=source[by_label],
            label_target=target[by_label],
            label_first=np.searchsorted(label[by_label], np.arange(len(members))),
            member_class=member_class,
            member_first=np.append(0, counts.cumsum()),
            by_class=member_class[by_class],
            class_label=np.repeat(np.arange(len(members)), counts)[by_class],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """How a span may end: with ends of text or without, and from which of its positions on."""

    allowed: bool = False
    least: int = 0

    def at(self, offset: int) -> bool:
        """Whether a text may end at this offset into the span, instead of a further token."""
        return self.allowed and offset >= self.least

    def over(self, offsets: np.ndarray) -> np.ndarray:
        """(N,) bool: the same at each of some offsets."""
        return (offsets >= self.least) & self.allowed


@dataclass(frozen=True, eq=False)
class Automaton:
    """What tokens do to states. S states over bytes, the last of S + 1 is the end; C classes; V tokens.

    Args:
        class_of: (V,) int32 class of each token.
        after: (C, S + 1) the next state per class, or DEAD.
        accept: (S + 1,) bool, where a text may be over.
        edges: pairs of states that some text token joins.
    """

    class_of: np.ndarray
    after: np.ndarray
    accept: np.ndarray
    edges: Edges
    _free: dict[bool, dict[int, np.ndarray]] = field(default_factory=dict, repr=False)
    _far: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """States, the end among them."""
        return len(self.accept)

    @property
    def num_classes(self) -> int:
        """Classes of tokens."""
        return len(self.after)

    @property
    def num_bytes(self) -> int:
        """Memory of the tables."""
        edges = [getattr(self.edges, name) for name in Edges.__slots__]
        return sum(table.nbytes for table in (self.class_of, self.after, self.accept, *edges))

    @property
    def empty(self) -> bool:
        """Whether no sequence of tokens is in the language, however long."""
        return self.shortest < 0

    @property
    def start(self) -> np.ndarray:
        """(S + 1,) bool: the start alone."""
        return np.arange(self.size) == 0

    def forth(self, states: np.ndarray, code: int, *, may_end: bool) -> np.ndarray:
        """(S + 1,) bool: where a token of class `code`, or any token at all (-1), leads from a set of states."""
        out = np.zeros(self.size, bool)
        if code == END and not may_end:
            out[-1] = states[-1]
            return out
        if code >= 0:
            after = self.after[code][states]
            out[after[after != DEAD]] = True
            return out
        found = _led(states[:-1], self.edges.first, self.edges.target, self.heads, self.edges.back_source)
        out[:-1] = found
        out[-1] = states[-1] or (may_end and bool((states & self.accept).any()))
        return out

    def back(self, states: np.ndarray, code: int, *, may_end: bool) -> np.ndarray:
        """(S + 1,) bool: from where a token of class `code`, or any token at all (-1), leads into a set of states."""
        if code == END and not may_end:
            out = np.zeros(self.size, bool)
            out[-1] = states[-1]
            return out
        if code >= 0:
            after = self.after[code]
            return (after != DEAD) & states[after]
        out = np.zeros(self.size, bool)
        out[:-1] = _led(states[:-1], self.edges.back_first, self.edges.back_source, self.tails, self.edges.target)
        if states[-1]:
            out[-1] = True
            if may_end:
                out |= self.accept
        return out

    def goal(self, ends: Ends) -> np.ndarray:
        """(S + 1,) bool: the states in which a span may be over."""
        goal = self.accept.copy()
        goal[-1] = ends.allowed
        return goal

    def completable(self, num_open: int, ends: Ends) -> np.ndarray:
        """(S + 1,) bool: from where `num_open` open positions at the end of a span can be completed.

        It does not depend on rows, and is remembered (threads that share it may compute the same set twice, no more);
        `ends.least` must lie before those positions.
        """
        found = self._free.setdefault(ends.allowed, {0: np.packbits(self.goal(ends))})
        for count in range(len(found), num_open + 1):
            now = np.unpackbits(found[count - 1], count=self.size).astype(bool)
            found[count] = np.packbits(self.back(now, -1, may_end=ends.allowed))
        return np.unpackbits(found[num_open], count=self.size).astype(bool)

    def reachable(self, num_open: int, ends: Ends) -> np.ndarray:
        """(num_open + 1, ceil((S + 1) / 8)) uint8: packed, where 0, 1, ... open positions at the start of a span lead.

        It does not depend on rows, and is remembered as `completable` is.
        """
        found = self._far
        found.setdefault(0, np.packbits(self.start))
        for count in range(len(found), num_open + 1):
            now = np.unpackbits(found[count - 1], count=self.size).astype(bool)
            found[count] = np.packbits(self.forth(now, -1, may_end=False))
        out = np.stack([found[count] for count in range(num_open + 1)])
        over = (out[:-1] & np.packbits(self.accept)).any(1) & ends.over(np.arange(num_open))
        bit = np.uint8(128 >> (self.size - 1) % 8)  # of the end, as numpy packs it
        out[1:, (self.size - 1) // 8] |= np.logical_or.accumulate(over) * bit
        return out

    @cached_property
    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ways into each state, ends of text among them, F at most: of automata of few states.

        Returns:
            (S + 1, F) where each comes from; (S + 1, F) its label, which is G for an end of text, G + 1 for a further
            one, and G + 2 where there is no way; (C, G + 3) of each class: 0 for the labels that hold it, or -inf.
        """
        e, last, count = self.edges, self.size - 1, len(self.edges.label_first)
        source = np.concatenate([e.back_source, self.accepting, [last]])
        label = np.concatenate([e.back_label, np.full(len(self.accepting), count), [count + 1]])
        fan = np.append(np.diff(e.back_first), len(self.accepting) + 1)
        column = np.arange(int(fan.max())) + np.zeros((self.size, 1), np.int64)
        sources, labels = np.zeros(column.shape, np.int64), np.full(column.shape, count + 2)
        sources[column < fan[:, None]], labels[column < fan[:, None]] = source, label
        known = np.full((self.num_classes, count + 3), -np.inf)
        known[e.by_class, e.class_label] = 0.0
        known[END, count : count + 2] = 0.0
        return sources, labels, known

    @cached_property
    def fan(self) -> int:
        """Ways into a state, at most."""
        return int(max(np.diff(self.edges.back_first).max(initial=0), len(self.accepting) + 1))

    @cached_property
    def accepting(self) -> np.ndarray:
        """The states over bytes in which a text may be over."""
        return np.flatnonzero(self.accept[:-1])

    @cached_property
    def heads(self) -> tuple[np.ndarray, np.ndarray]:
        """The states that tokens lead to, and where the pairs of each begin among those sorted by target."""
        return _some(self.edges.back_first)

    @cached_property
    def tails(self) -> tuple[np.ndarray, np.ndarray]:
        """The states that tokens lead from, and where the pairs of each begin."""
        return _some(self.edges.first)

    @cached_property
    def members(self) -> tuple[np.ndarray, np.ndarray]:
        """The classes that labels hold, and where the labels of each begin in `Edges.class_label`."""
        begins = np.flatnonzero(np.diff(self.edges.by_class, prepend=-1))
        return self.edges.by_class[begins], begins

    @cached_property
    def by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """(V,) the tokens sorted by class, and (C + 1,) where each class begins."""
        order = np.argsort(self.class_of, kind="stable")
        return order, np.searchsorted(self.class_of[order], np.arange(self.num_classes + 1))

    @cached_property
    def shortest(self) -> int:
        """Tokens of the shortest text; -1 where there is none."""
        seen, front = self.start, self.start
        for steps in range(self.size + 1):
            if bool((front & self.accept).any()):
                return steps
            front = self.forth(front, -1, may_end=False) & ~seen
            if not bool(front.any()):
                break
            seen = seen | front
        return -1


def _some(first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which ranges that begin at `first` (and end at the next one) hold anything, and where these begin."""
    held = np.flatnonzero(np.diff(first))
    return held, first[held]


def _led(
    states: np.ndarray, first: np.ndarray, target: np.ndarray, heads: tuple[np.ndarray, np.ndarray], source: np.ndarray
) -> np.ndarray:
    """(S,) bool: the ends of all pairs that begin in a set of states (S,); by the pairs of few states, or by all.

    Args:
        first, target: where each state's pairs begin, and where pairs lead.
        heads, source: the states that pairs lead to with where their pairs begin, and where those come from.
    """
    out, some = np.zeros(len(states), bool), np.flatnonzero(states)
    begins, ends = first[some], first[some + 1]
    count = int((ends - begins).sum())
    if count * DENSE < len(target) or not count:
        out[target[ragged(begins, ends)]] = True
    else:
        out[heads[0]] = np.logical_or.reduceat(states[source], heads[1])
    return out
