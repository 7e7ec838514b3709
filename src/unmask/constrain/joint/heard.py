"""What a network said of tokens while it is near: what it says of classes, and of tokens what may be asked for later.

Numbers of a few cells at a time are sorted by class and go through all that is made of them before the next ones do.
It does not know spans.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from unmask.constrain.automata.automaton import NEVER, Automaton
from unmask.constrain.automata.machine import ragged
from unmask.constrain.joint import nats
from unmask.constrain.joint.nats import fallen, numbers

T = TypeVar("T")

_NEAR = 1 << 15
"""Numbers that are worked on at a time."""

_RUN = 128
"""Tokens of a class whose numbers are added up, so that one of them is found among few."""

_FEW = 6
"""Below this share of all tokens (one in so many) each is looked for by itself, which takes longer for one of them."""

_CALM = 50.0
"""Nats whose numbers can be added up as they are: none is too large for it, and none counts that is too small."""

_CLEAR = 16
"""Below this share of barred tokens (one in so many) numbers are made as they come; see `numbers`."""

_LOOK = 64
"""Numbers of a row that tell, with the greatest, whether all are of float32: one of float64 passes once in 2^29."""


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """The tokens (M,) of some classes, sorted by class.

    Args:
        begins: (C + 1,) where each class begins among them.
        some: (c,) the classes that have any.
        cuts: (R,) where runs of at most `_RUN` tokens of one class begin, and `first` (C + 1,) each class's first run.
    """

    tokens: np.ndarray
    begins: np.ndarray
    some: np.ndarray
    cuts: np.ndarray
    first: np.ndarray


class Lists:
    """What follows from a set of classes about all tokens; the last few that were asked for are remembered.

    Args:
        most: how many; each is of some 8 bytes a token.
    """

    def __init__(self, most: int = 48) -> None:
        self.most = most
        self._known: dict[tuple[Automaton, str, bytes], Any] = {}

    def barred(self, automaton: Automaton, classes: np.ndarray) -> tuple[Tensor | None, Tensor | None]:
        """The tokens of no class (C,) bool; where they are many instead the most that logits (V,) float64 may be."""

        def make() -> tuple[Tensor | None, Tensor | None]:
            order, begins = automaton.by_class
            others = np.flatnonzero(~classes)
            if int((begins[others + 1] - begins[others]).sum()) * _FEW < len(order):
                return torch.from_numpy(order[ragged(begins[others], begins[others + 1])]), None
            return None, torch.from_numpy(np.where(classes, np.inf, -np.inf).take(automaton.class_of, mode="wrap"))

        return self._get((automaton, "barred", classes.tobytes()), make)

    def sorted(self, automaton: Automaton, classes: np.ndarray) -> Listed:
        """The tokens of classes (C,) bool, or of all but `NEVER` where these are most of them."""
        counts = np.diff(automaton.by_class[1])
        if 2 * counts[classes].sum() > len(automaton.class_of) - counts[NEVER]:
            classes = np.arange(len(classes)) != NEVER

        def make() -> Listed:
            order, begins = automaton.by_class
            counts = np.where(classes, np.diff(begins), 0)
            some, first = np.flatnonzero(counts), np.append(0, counts.cumsum())
            runs = -(-counts // _RUN)
            ordinal = np.arange(runs.sum()) - np.repeat(runs.cumsum() - runs, runs)
            return Listed(
                tokens=order[ragged(begins[some], begins[some + 1])],
                begins=first,
                some=some,
                cuts=np.repeat(first[:-1], runs) + _RUN * ordinal,
                first=np.append(0, runs.cumsum()),
            )

        return self._get((automaton, "sorted", classes.tobytes()), make)

    def _get(self, key: tuple[Automaton, str, bytes], make: Callable[[], T]) -> T:
        found = self._known.pop(key, None)
        found = make() if found is None else found
        self._known[key] = found  # the last one now
        if len(self._known) > self.most:
            del self._known[next(iter(self._known))]
        return cast(T, found)


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """What was heard of some cells (N,).

    Args:
        listed: of which tokens (M,).
        nats: of each cell (M,) of them, in float32 if that is what they were, as those of most networks are.
        top: (N,) the greatest of each cell, NaN where nothing was said.
        zero: (N,) nats that count as the number 1.
        cool: (N,) the temperature of each.
        sums: (N, R) numbers of runs of tokens at that temperature; of cells that are to be drawn.
        whole: (N, M) log-probabilities with what was left out of `nats` in it; None where nothing was.
    """

    listed: Listed
    nats: list[np.ndarray]
    top: np.ndarray
    zero: np.ndarray
    cool: np.ndarray
    sums: np.ndarray
    whole: np.ndarray | None

    @classmethod
    def of(
        cls, listed: Listed, classes: np.ndarray, said: tuple[Tensor, Tensor | None], how: tuple[np.ndarray, np.ndarray]
    ) -> tuple[Self, np.ndarray, np.ndarray]:
        """What was heard; and of the classes that are listed (N, c) the best nats, and all together.

        Args:
            classes: (N, C) bool, which of them may stand in each cell.
            said: nats (N, V) on the processor, and the same with -inf for what is taken only where nothing else fits.
            how: (N,) the temperature at which each may be drawn, 0 where it will not be; and bool, whether the best
                tokens may be asked for.
        """
        (every, left), (warm, best) = said, how
        tokens, some, count = listed.tokens, listed.some, len(warm)
        whole = None
        if left is not None:
            logs = every.double()
            whole = (logs - logs.logsumexp(1, keepdim=True)).numpy().take(tokens, axis=1)
        top, zero, cool = np.zeros((3, count))
        found = cls(listed, [], top, zero, cool, np.zeros((count, len(listed.cuts))), whole)
        cool[:] = warm.clip(min=1e-6)
        numbers_of = (every if left is None else left).double().numpy()
        peaks, draws, starts = np.full((count, len(some)), -np.inf), warm > 0, listed.begins[some]
        counts = np.diff(listed.begins)[some]
        clear = (~classes[:, some]) @ counts * _CLEAR < (len(tokens) if left is None else 0)
        step = max(1, _NEAR // max(1, len(tokens)))
        room = np.empty((step, len(tokens)))
        for first in range(0, count, step):
            rows = slice(first, first + step)
            part = numbers_of[rows].take(tokens, axis=1, out=room[: count - first], mode="wrap")
            top[rows] = peak = part.max(1, initial=-np.inf)
            found.nats.extend(part.astype(np.float32 if _is_single(part, peak) else np.float64))
            if not len(some):
                continue
            if bool(best[rows].any()):
                np.maximum.reduceat(part, starts, axis=1, out=peaks[rows])
            if bool(draws[rows].any()):
                _relate(part, peak, zero[rows], cool[rows])
                part = np.exp(part, out=part) if bool(clear[rows].all()) else numbers(part, part)
                np.add.reduceat(part, listed.cuts, axis=1, out=found.sums[rows])
        return found, peaks, found._totals(np.flatnonzero(draws), classes[:, some])

    def _totals(self, draws: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """(N, c) nats of all tokens of each class together, of some rows and wanted (N, c) classes; -inf of others."""
        some = self.listed.some
        out = np.full((len(self.nats), len(some)), -np.inf)
        if not out.size or not len(draws):
            return out
        sums = np.add.reduceat(self.sums[draws], self.listed.first[some], axis=1)
        found = np.log(np.maximum(sums, nats.LEAST))
        if bool((little := sums < nats.TINY).any()):  # nothing at all, or little beside the best token
            found[little] = -np.inf
            for n, c in zip(*np.nonzero(little & wanted[draws]), strict=True):
                own = self._relative(draws[n], *self._ends(some[c]))
                if (peak := own.max()) > -np.inf:
                    found[n, c] = np.log(numbers(own - peak).sum()) + peak
        out[draws] = found + (self.zero / self.cool)[draws, None]
        return out

    def _ends(self, kind: int) -> tuple[int, int]:
        """Where the tokens of a class begin and end."""
        return int(self.listed.begins[kind]), int(self.listed.begins[kind + 1])

    def _relative(self, row: int, begin: int, end: int) -> np.ndarray:
        """Nats of some tokens as they are added up: relative to what counts as 1, at the temperature of the row."""
        return (self.nats[row][begin:end].astype(np.float64) - self.zero[row]) / self.cool[row]

    def best(self, row: int, kind: int) -> int:
        """The most probable token of a class."""
        begin, end = self._ends(kind)
        return int(self.listed.tokens[begin + (int(self.nats[row][begin:end].argmax()) if end - begin > 1 else 0)])

    def drawn(self, row: int, kind: int, coin: float) -> int:
        """A token of a class that a coin from 0 to 1 falls on."""
        begin, end = self._ends(kind)
        if end - begin < 2:
            return int(self.listed.tokens[begin])
        first, last = self.listed.first[kind], self.listed.first[kind + 1]
        sums = self.sums[row, first:last].cumsum()
        if sums[-1] >= nats.TINY:
            run = min(int(sums.searchsorted(coin * sums[-1], side="right")), len(sums) - 1)
            begin += _RUN * run
            own = self._relative(row, begin, min(begin + _RUN, end))
            return int(self.listed.tokens[begin + fallen(own, coin * sums[-1] - (sums[run - 1] if run else 0.0))])
        own = self._relative(row, begin, end)
        if (peak := own.max()) == -np.inf:
            return int(self.listed.tokens[begin])
        return int(self.listed.tokens[begin + fallen(own - peak, coin * numbers(own - peak).cumsum()[-1])])

    def said(self, row: int, kind: int, token: int) -> tuple[float, bool]:
        """What was said of a token of a class, relative to the best one, and whether it was left."""
        begin, end = self._ends(kind)
        at = begin + np.searchsorted(self.listed.tokens[begin:end], token)
        left = bool(self.nats[row][at] > -np.inf)
        if not left and self.whole is not None:
            return float(self.whole[row, at]), left
        return float(self.nats[row][at]) - self.top[row], left


def _relate(nats: np.ndarray, top: np.ndarray, zero: np.ndarray, cool: np.ndarray) -> None:
    """Make nats (N, M), in place, those that are added up, and say what counts as 1 where 0 would not do."""
    far = np.abs(top) >= _CALM * cool
    if bool(far.any()):
        zero[:] = np.where(far & (top > -np.inf), top, 0.0)
        nats -= zero[:, None]
    if bool((cool != 1).any()):
        nats /= cool[:, None]


def _is_single(nats: np.ndarray, top: np.ndarray) -> bool:
    """Whether nats (N, M) of float64 are numbers of float32."""
    some = nats[:, :_LOOK]
    return bool((some.astype(np.float32) == some).all() and (top.astype(np.float32) == top).all())
