"""Through the states of many spans at once: what each is worth, and back along a way that is chosen.

Spans of one automaton go side by side, each from the first position that is asked about to the last. What a state is
worth are the nats of the best way into it, or of all ways together; only states that can still be completed count.
Where most pairs of states are in use, all of them are summed up in order and in linear numbers, relative to the best
state; sums that are too small for that are done again in logarithms. It does not know tokens.

Source: Viterbi 1967; Rabiner 1989 (forward filter, backward sample, eq. 18 to 25).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from unmask.constrain.automata.automaton import DENSE, END, Automaton
from unmask.constrain.automata.machine import DEAD, ragged
from unmask.constrain.joint import grid, nats
from unmask.constrain.joint.nats import joined, numbers, runs
from unmask.constrain.joint.reading import OPEN, Reading

Choice = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Which column of nats (K, M) each of K problems takes, at an offset (K,) each; never one of -inf."""

_NUMBERS, _WORTHS = 1 << 17, 1 << 22
"""Numbers that are worked on at a time, so that they stay near the processor, and that are kept for the way back."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Positions of a span that are asked about.

    Args:
        read: the span, and what stands in it.
        offsets: (N,) rising offsets into the span, taken as open.
        scores: (N, C) nats of each class.
    """

    read: Reading
    offsets: np.ndarray
    scores: np.ndarray

    @property
    def steps(self) -> int:
        """Positions from the first that is asked about to the last."""
        return int(self.offsets[-1] - self.offsets[0]) + 1


@dataclass(frozen=True, slots=True, eq=False)
class Road:
    """K problems of one automaton, the longest first, of at most M positions and N asked ones in all.

    Args:
        firsts, steps: (K,) the first offset of each, and its positions.
        codes: (K, M) what stands there; OPEN where asked, too.
        place: (K, M) which of the rows of `gains` holds there; N where nobody asked.
        may_end: (K, M) bool, where a text may end.
        ahead: (K, M + 1, bytes) packed states that lie on some way; perhaps more that can't be reached.
        gains: (N + 1, G) nats that each label adds, and `ends` (N + 1,) the end of text; the last row is of zeros.
        linear, tops: (N + 1, G) the same as numbers relative to the greatest of a row, and its nats (N + 1,).
        total: whether ways into a state add up their probabilities, or the best one counts.
    """

    automaton: Automaton
    firsts: np.ndarray
    steps: np.ndarray
    codes: np.ndarray
    place: np.ndarray
    may_end: np.ndarray
    ahead: np.ndarray
    gains: np.ndarray
    ends: np.ndarray
    linear: np.ndarray
    tops: np.ndarray
    total: bool

    @classmethod
    def of(cls, problems: Sequence[Problem], *, total: bool) -> "Road":
        """From problems, the longest first."""
        automaton, count = problems[0].read.span.automaton, sum(len(p.offsets) for p in problems)
        shape = len(problems), problems[0].steps
        codes, place = np.full(shape, OPEN), np.full(shape, count)
        may_end, done = np.zeros(shape, bool), 0
        ahead = np.zeros((shape[0], shape[1] + 1, (automaton.size + 7) // 8), np.uint8)
        for k, p in enumerate(problems):
            first, at = int(p.offsets[0]), p.offsets - p.offsets[0]
            codes[k, : p.steps] = p.read.codes[first : first + p.steps]
            codes[k, at], place[k, at] = OPEN, np.arange(done, done + len(at))
            may_end[k, : p.steps] = p.read.may_end[first : first + p.steps]
            ahead[k, : p.steps + 1] = p.read.between(p.offsets)
            done += len(at)
        scores = np.concatenate([p.scores for p in problems])
        gains = np.vstack([_by_label(automaton, scores, total=total), np.zeros(len(automaton.edges.label_first))])
        tops = gains.max(1, initial=-np.inf)
        tops[tops == -np.inf] = 0.0
        return cls(
            automaton=automaton,
            firsts=np.array([int(p.offsets[0]) for p in problems]),
            steps=np.array([p.steps for p in problems]),
            codes=codes,
            place=place,
            may_end=may_end,
            ahead=ahead,
            gains=gains,
            ends=np.append(scores[:, END], 0.0),
            linear=_linear(gains, tops[:, None]) if total else gains,
            tops=tops,
            total=total,
        )

    def onward(self, here: np.ndarray, step: int) -> np.ndarray:
        """(K, S + 1) what states are worth behind a step, from what they (K, S + 1) are worth before it."""
        code = self.codes[: len(here), step]
        ahead = np.unpackbits(self.ahead[: len(here), step + 1], axis=1, count=self.automaton.size).view(bool)
        is_open = code == OPEN
        if bool(is_open.all()):
            out = self._by_any(here, ahead, np.arange(len(here)), step)
        else:
            out = np.empty_like(here)
            for some, way in ((is_open, self._by_any), (~is_open, self._by_code)):
                if len(which := np.flatnonzero(some)):
                    out[which] = way(here[which], ahead[which], which, step)
        out[~ahead] = -np.inf
        return out

    def _by_any(self, here: np.ndarray, ahead: np.ndarray, which: np.ndarray, step: int) -> np.ndarray:
        """Over an open position of some problems (K,)."""
        e, place, size = self.automaton.edges, self.place[which, step], self.automaton.size
        k, s = np.nonzero(here[:, :-1] > -np.inf)
        counts = e.first[s + 1] - e.first[s]
        num = int(counts.sum())
        if num * DENSE > len(here) * len(e.target):
            out = self._dense(here, ahead, place)
        else:
            pairs = ragged(e.first[s], e.first[s + 1])
            row, target = np.repeat(k, counts), e.target[pairs]
            worth = np.repeat(here[k, s], counts) + self.gains[place[row], e.label[pairs]]
            keep = ahead[row, target] & (worth > -np.inf)
            out = self._gathered(row[keep] * size + target[keep], worth[keep], here.shape)
        if bool(ahead[:, -1].any()):
            before = np.where(self.may_end[which, step, None], here[:, self.automaton.accepting], -np.inf)
            over = np.concatenate([before, here[:, -1:]], axis=1)
            out[:, -1] = joined(over, total=self.total) + self.ends[place]
        return out

    def _dense(self, here: np.ndarray, ahead: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Along all pairs of states."""
        e, (heads, begins) = self.automaton.edges, self.automaton.heads
        out = np.full(here.shape, -np.inf)
        if not self.total:
            ways = here.take(e.back_source, axis=1)
            ways += self.gains[place].take(e.back_label, axis=1)
            out[:, heads] = np.maximum.reduceat(ways, begins, axis=1)
            return out
        best = here[:, :-1].max(1, keepdims=True)
        best[best == -np.inf] = 0.0
        ways = _linear(here[:, :-1], best).take(e.back_source, axis=1)
        ways *= self.linear[place].take(e.back_label, axis=1)
        sums = np.add.reduceat(ways, begins, axis=1)
        out[:, heads] = np.log(np.maximum(sums, nats.LEAST)) + (best + self.tops[place, None])
        k, h = np.nonzero((sums < nats.TINY) & ahead[:, heads])
        if len(h):
            state = heads[h]
            first, counts = e.back_first[state], e.back_first[state + 1] - e.back_first[state]
            pairs = ragged(first, first + counts)
            worth = here.ravel()[e.back_source[pairs] + np.repeat(k * here.shape[1], counts)]
            worth += self.gains.ravel()[e.back_label[pairs] + np.repeat(place[k] * self.gains.shape[1], counts)]
            out[k, state] = runs(worth, counts)
        return out

    def _by_code(self, here: np.ndarray, ahead: np.ndarray, which: np.ndarray, step: int) -> np.ndarray:
        """Over a position of some problems (K,) whose token is known."""
        k, s = np.nonzero(here > -np.inf)
        code, size = self.codes[which, step][k], self.automaton.size
        target = self.automaton.after[code, s].astype(np.int64)
        keep = (target != DEAD) & ((code != END) | self.may_end[which, step][k] | (s == size - 1))
        keep[keep] = ahead[k[keep], target[keep]]
        return self._gathered(k[keep] * size + target[keep], here[k[keep], s[keep]], here.shape)

    def _gathered(self, key: np.ndarray, worth: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """What finite nats (N,) of ways are together where they lead: flat places (N,) in an array of a shape."""
        out = np.full(shape, -np.inf)
        flat = out.reshape(-1)
        np.maximum.at(flat, key, worth)
        if self.total:
            sums = np.bincount(key, numbers(worth - flat[key]), len(flat))
            some = sums > 0
            flat[some] += np.log(sums[some])
        return out

    def back(
        self, here: np.ndarray, which: np.ndarray, state: np.ndarray, step: int, choose: Choice
    ) -> tuple[np.ndarray, np.ndarray]:
        """(M,) the states before a step on chosen ways, and the labels taken (-1: the end), for some problems (M,).

        Args:
            here: (K, S + 1) what states are worth before the step.
            state: (M,) the states behind it.
        """
        before, label = np.empty_like(state), np.full_like(state, -1)
        is_text = (self.codes[which, step] == OPEN) & (state < self.automaton.size - 1)
        if len(text := np.flatnonzero(is_text)):
            own, (source, names, worth) = which[text], self._ways_back(here, which[text], state[text], step)
            at = np.arange(len(own)), choose(own, self.firsts[own] + step, worth)
            before[text], label[text] = source[at], names[at]
        if len(rest := np.flatnonzero(~is_text)):
            own = which[rest]
            may = self._may_come(own, state[rest], step)
            before[rest] = choose(own, self.firsts[own] + step, np.where(may, here[own], -np.inf))
        return before, label

    def _ways_back(
        self, here: np.ndarray, which: np.ndarray, state: np.ndarray, step: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sources, labels and nats (M, ...) of all pairs that lead to states (M,) of some problems; -inf: no pair."""
        e, place = self.automaton.edges, self.place[which, step]
        begins, counts = e.back_first[state], e.back_first[state + 1] - e.back_first[state]
        column = np.arange(counts.max())
        pairs = np.minimum(begins[:, None] + column, (begins + counts - 1)[:, None])
        source, label = e.back_source[pairs], e.back_label[pairs]
        worth = here[which[:, None], source] + self.gains[place[:, None], label]
        worth[column >= counts[:, None]] = -np.inf
        return source, label, worth

    def _may_come(self, which: np.ndarray, state: np.ndarray, step: int) -> np.ndarray:
        """(M, S + 1) bool: from where what stands there, or an end of text, leads to states (M,) of some problems."""
        code = np.where(self.codes[which, step] == OPEN, END, self.codes[which, step])
        may: np.ndarray = self.automaton.after[code] == state[:, None]
        may[(code == END) & ~self.may_end[which, step], :-1] = False
        return may


def walk(problems: Sequence[Problem], choose: Choice, *, total: bool) -> list[np.ndarray | None]:
    """The labels that the asked positions of each problem take (-1: the end of text), or None where there is no way.

    Args:
        problems: of one automaton, each of some positions.
        choose: how to choose the last state, and the state before each; problems are counted as they come.
        total: whether ways into a state add up their probabilities, or the best one counts.
    """
    assert all(bool((np.diff(p.offsets) > 0).all()) for p in problems), "positions of a row rise"
    found: list[np.ndarray | None] = [None] * len(problems)
    order = sorted(range(len(problems)), key=lambda i: -problems[i].steps)
    size, pairs = problems[0].read.span.automaton.size, len(problems[0].read.span.automaton.edges.target)
    while order:
        steps = problems[order[0]].steps
        few = grid.fits(size, problems[0].read.span.automaton.fan, steps)
        most = few or max(1, min(_NUMBERS // (size + pairs), _WORTHS // (size * steps)))
        some, order = np.array(order[:most]), order[most:]
        labels = _walk([problems[i] for i in some], partial(_renumbered, choose, some), few=few > 0, total=total)
        for i, own in zip(some, labels, strict=True):
            found[i] = own
    return found


def _renumbered(choose: Choice, number: np.ndarray, which: np.ndarray, at: np.ndarray, worth: np.ndarray) -> np.ndarray:
    return choose(number[which], at, worth)


def _walk(problems: Sequence[Problem], choose: Choice, *, few: bool, total: bool) -> list[np.ndarray | None]:
    """As `walk`, the longest first; `few` says whether there are few states."""
    road = Road.of(problems, total=total)
    start = np.stack([p.read.before(p.offsets[:1])[0] for p in problems])
    start &= np.unpackbits(road.ahead[:, 0], axis=1, count=road.automaton.size).view(bool)
    alive, labels = grid.through(road, start, choose) if few else _through(road, start, choose)
    return [labels[k, p.offsets - p.offsets[0]] if alive[k] else None for k, p in enumerate(problems)]


def _through(road: Road, start: np.ndarray, choose: Choice) -> tuple[np.ndarray, np.ndarray]:
    """As `grid.through`, for any number of states."""
    worth = [np.where(start, 0.0, -np.inf)]
    active = (road.steps[:, None] > np.arange(road.steps[0])).sum(0)
    for step, count in enumerate(active):
        worth.append(road.onward(worth[-1][:count], step))
    alive = np.array([bool((worth[steps][k] > -np.inf).any()) for k, steps in enumerate(road.steps)])
    state, labels = np.zeros(len(alive), np.int64), np.full(road.codes.shape, -1)
    for step in range(len(active) - 1, -1, -1):
        if len(new := np.flatnonzero(alive & (road.steps == step + 1))):
            state[new] = choose(new, road.firsts[new] + step + 1, worth[step + 1][new])
        if len(which := np.flatnonzero(alive[: active[step]])):
            state[which], labels[which, step] = road.back(worth[step], which, state[which], step, choose)
    return alive, labels


def _by_label(automaton: Automaton, scores: np.ndarray, *, total: bool) -> np.ndarray:
    """(N, G) nats of each label, of those (N, C) of classes: of all its classes together, or of the best one."""
    e = automaton.edges
    begins, out = e.member_first[:-1], np.full((len(scores), len(e.label_first)), -np.inf)
    if not len(begins):
        return out
    step = max(1, _NUMBERS // len(e.member_class))
    for first in range(0, len(scores), step):
        part, here = scores[first : first + step], out[first : first + step]
        if not total:
            np.maximum.reduceat(part.take(e.member_class, axis=1), begins, axis=1, out=here)
            continue
        top = part.max(1, keepdims=True)
        top[top == -np.inf] = 0.0
        sums = np.add.reduceat(numbers(part - top).take(e.member_class, axis=1), begins, axis=1)
        np.add(np.log(sums), top, out=here)
        if bool((little := sums < nats.TINY).any()):  # too small beside the others, or nothing at all
            here[little] = -np.inf
            row, label = np.nonzero(
                little & (np.maximum.reduceat(part.take(e.member_class, axis=1), begins, axis=1) > -np.inf)
            )
            if len(row):
                some, counts = ragged(begins[label], e.member_first[label + 1]), np.diff(e.member_first)[label]
                here[row, label] = runs(part[np.repeat(row, counts), e.member_class[some]], counts)
    return out


def _linear(worth: np.ndarray, best: np.ndarray) -> np.ndarray:
    """Numbers to be multiplied, relative to the best: of nats -inf they are 0."""
    found = numbers(worth - best)
    found[worth == -np.inf] = 0.0
    return found
