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

from unmask.constrain.machine import DEAD, ragged

NEVER, END = 0, 1
"""Classes of the tokens that are never possible, and of those that end a text."""


@dataclass(frozen=True, slots=True)
class Edges:
    """Pairs of states that text tokens join, P in all, and G labels: sets of classes.

    Args:
        source, target: (P,) states, sorted by source.
        label: (P,) which classes join them.
        first: (S + 1,) where the pairs of each source begin.
        back: (P,) the pairs sorted by target, and `back_first` (S + 1,) where each target's begin.
        by_label: (P,) the pairs sorted by label, and `label_first` (G,) where each label's begin.
        member_label, member_class: (M,) which label holds which class, sorted by label.
        by_class: (M,) those sorted by class.
    """

    source: np.ndarray
    target: np.ndarray
    label: np.ndarray
    first: np.ndarray
    back: np.ndarray
    back_first: np.ndarray
    by_label: np.ndarray
    label_first: np.ndarray
    member_label: np.ndarray
    member_class: np.ndarray
    by_class: np.ndarray

    @classmethod
    def of(
        cls, source: np.ndarray, target: np.ndarray, label: np.ndarray, members: Sequence[np.ndarray], size: int
    ) -> Self:
        """From pairs sorted by source, and the classes of each label."""
        back, by_label = np.argsort(target, kind="stable"), np.argsort(label, kind="stable")
        states = np.arange(size + 1)
        member_label = np.repeat(np.arange(len(members)), [len(some) for some in members])
        member_class = np.concatenate([np.zeros(0, np.int64), *members]).astype(np.int64)
        return cls(
            source=source.astype(np.int64),
            target=target.astype(np.int64),
            label=label.astype(np.int64),
            first=np.searchsorted(source, states),
            back=back,
            back_first=np.searchsorted(target[back], states),
            by_label=by_label,
            label_first=np.searchsorted(label[by_label], np.arange(len(members))),
            member_label=member_label.astype(np.int64),
            member_class=member_class,
            by_class=np.argsort(member_class, kind="stable"),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """How a span may end: with ends of text or without, and from which of its positions on."""

    allowed: bool = False
    least: int = 0

    def at(self, offset: int) -> bool:
        """Whether a text may end at this offset into the span, instead of a further token."""
        return self.allowed and offset >= self.least


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
        e, some = self.edges, np.flatnonzero(states[:-1])
        out[e.target[ragged(e.first[some], e.first[some + 1])]] = True
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
        e, some = self.edges, np.flatnonzero(states[:-1])
        out[e.source[e.back[ragged(e.back_first[some], e.back_first[some + 1])]]] = True
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
