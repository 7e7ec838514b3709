"""Tokens for many positions at once: the best that go together, a fair draw of them, the most that can be kept.

Positions that are possible one by one may be impossible together. All three questions are one pass from left to right
over the states that can still be completed, with what each state is worth so far, and one back along the way taken
(`walk`). What a network says of tokens is heard a part at a time and becomes what it says of classes at once.

It does not know rows or canvases; `holes` asks about spans.

Source: Suresh et al. 2025, DINGO, arXiv:2505.23061 (the best string over position x state).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from unmask.constrain.automata.automaton import END, NEVER, Automaton
from unmask.constrain.automata.machine import ragged
from unmask.constrain.joint.heard import Heard, Lists
from unmask.constrain.joint.nats import coins, drawn, rows_of
from unmask.constrain.joint.reading import Reading, allowed
from unmask.constrain.joint.walk import Choice, Problem, walk

T = TypeVar("T")

FLOOR = -1e9
"""Nats of what has no probability: taken only where nothing else can be completed, and as seldom as possible."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Cells of a question that lie in one span: which of them (N,), rising, and their offsets into it."""

    read: Reading
    at: np.ndarray
    offsets: np.ndarray


@dataclass(eq=False)
class _Group:
    """Cells whose spans have one automaton.

    Args:
        at: (n,) the cells; `kind` (n,) which of the rows of `kinds` (K, C) says what classes may stand there.
    """

    automaton: Automaton
    parts: list[Part]
    at: np.ndarray
    kind: np.ndarray
    kinds: np.ndarray

    @cached_property
    def best(self) -> np.ndarray:
        """(n, C) nats of the most probable token of each class; -inf where nothing was heard."""
        return np.full((len(self.at), self.automaton.num_classes), -np.inf)

    @cached_property
    def total(self) -> np.ndarray:
        """(n, C) nats of all tokens of each class together, at the temperature of the cell."""
        return np.full((len(self.at), self.automaton.num_classes), -np.inf)

    @cached_property
    def allowed(self) -> Tensor:
        """(K, V) bool: the tokens of each kind."""
        return torch.from_numpy(self.kinds[:, self.automaton.class_of])


class Question:
    """Cells (N,) of several spans that are asked about together; cells that no part holds are nobody's business.

    Args:
        parts: the spans and their cells.
        num_cells: N.
        lists: of tokens, that other questions may have asked for.
        narrow: whether only classes that may stand at a cell, all others as they are, need to be heard of; not where
            written cells are asked about.

    Attributes:
        heard: (N,) bool, the cells of which numbers were heard.
    """

    def __init__(self, parts: Sequence[Part], num_cells: int, lists: Lists, *, narrow: bool) -> None:
        self._lists = lists
        self.heard = np.zeros(num_cells, bool)
        self._group, self._place = np.full(num_cells, -1), np.zeros(num_cells, np.int64)
        self._piece, self._row = np.zeros(num_cells, np.int64), np.zeros(num_cells, np.int64)
        self._pieces: list[Heard] = []
        self._groups = []
        by_automaton: dict[int, list[Part]] = {}
        for part in parts:
            by_automaton.setdefault(id(part.read.span.automaton), []).append(part)
        for number, own in enumerate(by_automaton.values()):
            at, automaton = np.concatenate([part.at for part in own]), own[0].read.span.automaton
            if narrow:
                bits = np.packbits(allowed([(part.read, part.offsets) for part in own]), axis=1)
                rows = np.ascontiguousarray(bits).view(f"V{bits.shape[1]}")[:, 0]
                _, one, kind = np.unique(rows, return_index=True, return_inverse=True)
                kinds = np.unpackbits(bits[one], axis=1, count=automaton.num_classes).view(bool)
            else:
                kind, kinds = np.zeros(len(at), np.int64), np.arange(automaton.num_classes)[None] != NEVER
            self._group[at], self._place[at] = number, np.arange(len(at))
            self._groups.append(_Group(automaton, own, at, kind.reshape(-1), kinds))

    @property
    def cells(self) -> np.ndarray:
        """(M,) those of the N cells that some part holds."""
        return np.flatnonzero(self._group >= 0)

    @property
    def alone(self) -> np.ndarray:
        """(N,) bool: the cells that nothing goes together with: what may stand there is all that there is to say.

        Nothing else of the span is asked about, and the text before it leads to one state, whatever it may become.
        """
        found = np.zeros(len(self._group), bool)
        for group in self._groups:
            for part in group.parts:
                if len(part.at) == 1 and part.read.before(part.offsets).sum() == 1:
                    found[part.at] = True
        return found

    def allowed(self, cells: np.ndarray) -> Tensor:
        """(M, V) bool: the tokens with which the span can be completed, all other positions as they are."""
        numbers = np.unique(self._group[cells])
        if len(numbers) == 1:
            group = self._groups[numbers[0]]
            return group.allowed[torch.from_numpy(group.kind[self._place[cells]])]
        out = torch.empty(len(cells), len(self._groups[0].automaton.class_of), dtype=torch.bool)
        for number in numbers:
            some = np.flatnonzero(self._group[cells] == number)
            out[torch.from_numpy(some)] = self.allowed(cells[some])
        return out

    def bar(self, cells: np.ndarray, logits: Tensor) -> None:
        """Take out of logits (M, V), in place, the tokens with which the span of a cell can't be completed."""
        groups = [self._groups[number] for number in self._group[cells]]
        kinds = [group.kind[place] for group, place in zip(groups, self._place[cells], strict=True)]
        begins = [n for n in range(len(cells)) if not n or groups[n] is not groups[n - 1] or kinds[n] != kinds[n - 1]]
        for first, last in zip(begins, [*begins[1:], len(cells)], strict=True):  # runs of one kind
            part = logits[first:last]
            tokens, cap = self._lists.barred(groups[first].automaton, groups[first].kinds[kinds[first]])
            if tokens is not None:
                part.index_fill_(1, tokens.to(part.device), -torch.inf)
            elif cap is not None:
                torch.minimum(part, cap.to(part.device), out=part)

    def hear(
        self, cells: np.ndarray, nats: Tensor, warm: np.ndarray, *, best: np.ndarray, left: Tensor | None = None
    ) -> None:
        """Take note of what is said of some cells (M,).

        Args:
            nats: (M, V) logits or log-probabilities, -inf where a token may not stand.
            warm: (M,) the temperature at which each may be drawn; 0 where it will not be.
            best: (M,) bool, whether the best tokens may be asked for.
            left: (M, V) the same with -inf for tokens that are taken only where nothing else goes together.
        """
        for number in np.unique(self._group[cells]):
            some = np.flatnonzero(self._group[cells] == number)
            every = len(some) == len(cells)
            told, rest = (x if every or x is None else x[torch.from_numpy(some).to(x.device)] for x in (nats, left))
            assert told is not None
            self._hear(self._groups[number], cells[some], told, warm[some], best=best[some], left=rest)

    def _hear(
        self, group: _Group, cells: np.ndarray, nats: Tensor, warm: np.ndarray, *, best: np.ndarray, left: Tensor | None
    ) -> None:
        place = self._place[cells]
        classes = group.kinds[group.kind[place]]
        said = nats.cpu(), None if left is None else left.cpu()
        listed = self._lists.sorted(group.automaton, classes.any(0))
        heard, peaks, totals = Heard.of(listed, classes, said, (warm, best))
        self._piece[cells], self._row[cells] = len(self._pieces), np.arange(len(cells))
        self._pieces.append(heard)
        self.heard[cells] = ~np.isnan(heard.top)
        if bool(best.any()):
            group.best[place[best, None], listed.some] = rows_of(peaks, np.flatnonzero(best))
        if bool((draws := warm > 0).any()):
            group.total[place[draws, None], listed.some] = rows_of(totals, np.flatnonzero(draws))

    def fill(self, which: np.ndarray) -> np.ndarray:
        """(M,) the tokens that are together the most probable ones, of those cells that are true in `which` (N,)."""
        found = np.zeros(len(which), np.int64)
        for group in self._groups:
            if parts := _asked(group, which):
                worth = np.concatenate(self._chosen(group, parts, _highest, total=False))
                at = np.concatenate([part.at for part in parts])
                found[at] = self._tokens(at, worth.argmax(1), None)
        return found[which]

    def sample(self, which: np.ndarray, seed: Tensor, turn: Tensor) -> np.ndarray:
        """(M,) tokens drawn from all that go together, of those cells that are true in `which` (N,).

        Args:
            seed, turn: (N,) these and the position key the noise; those of a row are equal.
        """
        found, (seed, turn) = np.zeros(len(which), np.int64), (seed.cpu(), turn.cpu())
        for group in self._groups:
            parts = _asked(group, which)
            if not parts:
                continue
            first = torch.tensor([part.at[0] for part in parts])
            start = torch.tensor([part.read.span.start + int(part.offsets[0]) for part in parts])
            longest = max(int(part.offsets[-1] - part.offsets[0]) for part in parts) + 2
            places, begins = start[:, None] + torch.arange(longest), np.array([int(part.offsets[0]) for part in parts])
            ways = coins(seed[first, None], "joint state", turn[first, None], places)

            def choose(
                k: np.ndarray, at: np.ndarray, worth: np.ndarray, ways: np.ndarray = ways, begins: np.ndarray = begins
            ) -> np.ndarray:
                return drawn(worth, ways[k, at - begins[k]])

            at = np.concatenate([part.at for part in parts])
            position = torch.from_numpy(np.concatenate([part.read.span.start + part.offsets for part in parts]))
            own, when = (x[torch.from_numpy(at)] for x in (seed, turn))
            kinds, tokens = (coins(own, name, when, position) for name in ("joint class", "joint token"))
            worth = np.concatenate(self._chosen(group, parts, choose, total=True))
            found[at] = self._tokens(at, drawn(worth, kinds), tokens)
        return found[which]

    def nats(self, cells: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(M,) what was said of a token at each of some cells, relative to the best one there, and whether it was left.

        Where it was not, these are its log-probabilities before anything was left out.
        """
        found, left = np.empty(len(cells)), np.ones(len(cells), bool)
        for n, (cell, token) in enumerate(zip(cells, tokens, strict=True)):
            kind = self._groups[self._group[cell]].automaton.class_of[token]
            found[n], left[n] = self._pieces[self._piece[cell]].said(self._row[cell], kind, token)
        return found, left

    def _chosen(self, group: _Group, parts: Sequence[Part], choose: Choice, *, total: bool) -> list[np.ndarray]:
        """Of each part: the nats (M, C) of classes that its cells may take on the way chosen; -inf of the others."""
        table = group.total if total else group.best
        tables = [table[self._place[part.at]] for part in parts]

        def walked(which: Sequence[int]) -> list[np.ndarray | None]:
            problems, number = [Problem(parts[i].read, parts[i].offsets, tables[i]) for i in which], np.array(which)
            return walk(problems, lambda k, at, worth: choose(number[k], at, worth), total=total)

        found = walked(range(len(parts)))
        if none := [i for i, labels in enumerate(found) if labels is None]:  # only with tokens of no probability, then
            for i in none:
                may = group.kinds[group.kind[self._place[parts[i].at]]] & (np.diff(group.automaton.by_class[1]) > 0)
                tables[i] = np.where(may, np.maximum(tables[i], FLOOR), -np.inf)
            for i, labels in zip(none, walked(none), strict=True):
                found[i] = labels
        assert all(labels is not None for labels in found), "a span was asked for tokens that can't be completed"
        held = [_held(group.automaton, labels) for labels in found if labels is not None]
        return [np.where(some, nats, -np.inf) for some, nats in zip(held, tables, strict=True)]

    def _tokens(self, cells: np.ndarray, chosen: np.ndarray, chances: np.ndarray | None) -> np.ndarray:
        """(M,) a token of each chosen class: the most probable one, or by a coin (M,) from 0 to 1."""
        out = np.empty(len(cells), np.int64)
        for n, (cell, kind) in enumerate(zip(cells, chosen, strict=True)):
            heard, row = self._pieces[self._piece[cell]], self._row[cell]
            out[n] = heard.best(row, kind) if chances is None else heard.drawn(row, kind, chances[n])
        return out


def kept(read: Reading, done: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Which of the written offsets (D,) may stay so that as little weight (D,) as possible is opened; None: no way."""
    if not len(done):
        return None
    scores = np.repeat(-np.asarray(weight, np.float64)[:, None], read.span.automaton.num_classes, axis=1)
    codes = read.codes[done]
    scores[np.arange(len(done)), codes] = 0.0
    labels = walk([Problem(read, done, scores)], _highest, total=False)[0]
    return None if labels is None else _held(read.span.automaton, labels)[np.arange(len(done)), codes]


def _highest(_: np.ndarray, __: np.ndarray, worth: np.ndarray) -> np.ndarray:
    found: np.ndarray = worth.argmax(1)
    return found


def _asked(group: _Group, which: np.ndarray) -> list[Part]:
    """The parts of a group with those of their cells that are true in `which` (N,)."""
    found = []
    for part in group.parts:
        some = which[part.at]
        if bool(some.any()):
            found.append(part if bool(some.all()) else Part(part.read, part.at[some], part.offsets[some]))
    return found


def _held(automaton: Automaton, labels: np.ndarray) -> np.ndarray:
    """(N, C) bool: the classes of each label (N,)."""
    e = automaton.edges
    held = np.zeros((len(labels), automaton.num_classes), bool)
    row = np.flatnonzero(labels >= 0)
    first, last = e.member_first[labels[row]], e.member_first[labels[row] + 1]
    held[np.repeat(row, last - first), e.member_class[ragged(first, last)]] = True
    held[labels == -1, END] = True
    return held
