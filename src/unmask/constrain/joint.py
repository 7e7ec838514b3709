"""Tokens for many positions at once: the best that go together, a fair draw of them, the most that can be kept.

Positions that are possible one by one may be impossible together. All three questions are one pass from left to right
over the states that can still be completed, with what each state is worth so far, and one back along the way taken.

It does not know rows or canvases; `holes` asks about one span at a time.

Source: Suresh et al. 2025, DINGO, arXiv:2505.23061 (the best string over position x state); Viterbi 1967; Rabiner 1989
(forward filter, backward sample, eq. 18 to 25).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from unmask.base import seeds
from unmask.constrain.automaton import END, Automaton, Edges
from unmask.constrain.machine import DEAD, ragged

if TYPE_CHECKING:
    from unmask.constrain.holes import Reading

FLOOR = -1e9
"""Nats of what has no probability: taken only where nothing else can be completed, and as seldom as possible."""

Choice = Callable[[int, np.ndarray, np.ndarray], int]
"""Which of several (offset, their states, their worths) a way takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Positions of a span that are asked about.

    Args:
        read: the span, and what stands in it.
        offsets: (N,) rising offsets into the span, taken as open.
        best, mass: (N, C) nats, the most probable token of each class, and all of its tokens together.
        log_probs: (N, V) nats.
    """

    read: "Reading"
    offsets: np.ndarray
    best: np.ndarray
    mass: np.ndarray
    log_probs: Tensor

    @classmethod
    def of(cls, read: "Reading", offsets: np.ndarray, log_probs: Tensor) -> Self:
        """From log-probabilities (N, V)."""
        assert bool((np.diff(offsets) > 0).all()), "positions of a row rise"
        automaton = read.span.automaton
        log_probs = log_probs.double().cpu().clamp(min=FLOOR)
        order = np.argsort(automaton.class_of, kind="stable")
        classes, begins = np.unique(automaton.class_of[order], return_index=True)
        sorted_ = log_probs.numpy()[:, order]
        best = np.full((len(offsets), automaton.num_classes), -np.inf)
        mass = best.copy()
        best[:, classes] = np.maximum.reduceat(sorted_, begins, axis=1)
        top = sorted_.max(1, keepdims=True)
        with np.errstate(divide="ignore"):
            sums = np.log(np.add.reduceat(np.exp(sorted_ - top), begins, axis=1)) + top
        mass[:, classes] = np.maximum(sums, best[:, classes])
        return cls(read, offsets, best, mass, log_probs)


def alone(log_probs: Tensor, positions: Tensor, keys: tuple[Tensor, Tensor] | None) -> Tensor:
    """(N,) tokens where nothing constrains: the most probable ones, or drawn."""
    return log_probs.argmax(-1) if keys is None else _race(log_probs, positions, *keys)


def best(problem: Problem) -> Tensor:
    """(N,) the most probable tokens that go together."""
    labels = _walk(problem, problem.best, total=False, choose=lambda _, states, worth: int(worth.argmax()))
    scores = problem.log_probs.masked_fill(~_mask(problem, labels), -torch.inf)
    return scores.argmax(-1).to(problem.log_probs.device)


def draw(problem: Problem, positions: Tensor, seed: Tensor, turn: Tensor) -> Tensor:
    """(N,) tokens drawn from all that go together; `positions`, `seed` and `turn` (N,) key the noise."""
    start = problem.read.span.start

    def choose(offset: int, states: np.ndarray, worth: np.ndarray) -> int:
        noise = seeds.uniform(
            seeds.key(seed[0].cpu(), "joint", turn[0].cpu(), start + offset, torch.from_numpy(states))
        )
        return int((worth - np.log(-np.log(noise.numpy()))).argmax())

    labels = _walk(problem, problem.mass, total=True, choose=choose)
    scores = problem.log_probs.masked_fill(~_mask(problem, labels), -torch.inf)
    return _race(scores, positions.cpu(), seed.cpu(), turn.cpu()).to(positions.device)


def kept(read: "Reading", done: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Which of the written offsets (D,) may stay so that as little weight (D,) as possible is opened; None: no way."""
    scores = np.repeat(-np.asarray(weight, np.float64)[:, None], read.span.automaton.num_classes, axis=1)
    codes = read.codes[done]
    scores[np.arange(len(done)), codes] = 0.0
    if not len(done):
        return None
    problem = Problem(read, done, scores, scores, torch.empty(0))
    labels = _walk(problem, scores, total=False, choose=lambda _, states, worth: int(worth.argmax()))
    if labels is None:
        return None
    return _held(read.span.automaton, labels)[np.arange(len(done)), codes]


def _mask(problem: Problem, labels: Sequence[int] | None) -> Tensor:
    """(N, V) bool: the tokens of each position's label."""
    assert labels is not None, "a span was asked for tokens that can't be completed"
    automaton = problem.read.span.automaton
    return torch.from_numpy(_held(automaton, labels))[:, torch.from_numpy(automaton.class_of)]


def _held(automaton: Automaton, labels: Sequence[int]) -> np.ndarray:
    """(N, C) bool: the classes of each label."""
    e = automaton.edges
    held = np.zeros((len(labels), automaton.num_classes), bool)
    for row, label in enumerate(labels):
        first, last = np.searchsorted(e.member_label, [label, label + 1])
        held[row, END if label == -1 else e.member_class[first:last]] = True
    return held


def _race(log_probs: Tensor, positions: Tensor, seed: Tensor, turn: Tensor) -> Tensor:
    """(N,) tokens drawn by the Gumbel-max rule, with the numbers that a free row draws by."""
    keys = seeds.key(seed, "token", turn, positions)
    tokens = torch.arange(log_probs.shape[1], device=log_probs.device)
    noise = seeds.uniform(seeds.key(keys[:, None], "gumbel", tokens))
    return (log_probs - torch.log(-torch.log(noise))).argmax(-1)


def _walk(problem: Problem, scores: np.ndarray, *, total: bool, choose: Choice) -> list[int] | None:
    """The label that each asked position takes (-1: the end of text), or None where nothing can be completed.

    Args:
        scores: (N, C) nats per class.
        total: whether ways into a state add up their probabilities, or the best one counts.
        choose: how to choose the last state, and the state before each.
    """
    read = problem.read
    automaton, e = read.span.automaton, read.span.automaton.edges
    first, last = int(problem.offsets[0]), int(problem.offsets[-1]) + 1
    asked = {int(offset): row for row, offset in enumerate(problem.offsets)}
    codes = [-1 if offset in asked else int(read.codes[offset]) for offset in range(first, last)]
    ahead = [read.sets(read.right, np.array([last]))[0]]
    for offset in range(last - 1, first - 1, -1):
        ahead.append(automaton.back(ahead[-1], codes[offset - first], may_end=read.rule.at(offset)))
    ahead.reverse()
    begin = read.sets(read.left, np.array([first]))[0] & ahead[0]
    if not begin.any():
        return None
    gain = _gain(e, scores, total=total)
    worth = [np.where(begin, 0.0, -np.inf)]
    for offset in range(first, last):
        here, code = worth[-1], codes[offset - first]
        row = asked.get(offset)
        out = np.full(automaton.size, -np.inf)
        live = np.flatnonzero(here > -np.inf)
        if code >= 0:
            if code != END or read.rule.at(offset) or here[-1] > -np.inf:
                target = automaton.after[code][live]
                worths = here[live]
            else:
                target, worths = np.zeros(0, np.int64), np.zeros(0)
        else:
            text = live[live < automaton.size - 1]
            pairs = ragged(e.first[text], e.first[text + 1])
            target, worths = e.target[pairs], here[e.source[pairs]]
            if row is not None:
                worths = worths + gain(row)[e.label[pairs]]
            over = live[_may_be_over(automaton.accept, live, here_may_end=read.rule.at(offset))]
            target = np.concatenate([target, np.full(len(over), automaton.size - 1)])
            worths = np.concatenate([worths, here[over] + (0.0 if row is None else scores[row, END])])
        keep = target != DEAD
        keep[keep] = ahead[offset - first + 1][target[keep]]
        _gather(out, target[keep], worths[keep], total=total)
        worth.append(out)
    return _way(problem, scores, worth, codes, gain, choose)


def _may_be_over(accept: np.ndarray, live: np.ndarray, *, here_may_end: bool) -> np.ndarray:
    """Which of the live states an end of text may follow."""
    last = len(accept) - 1
    return (live == last) | (accept[live] & here_may_end)


def _gain(e: Edges, scores: np.ndarray, *, total: bool) -> Callable[[int], np.ndarray]:
    """What each label (G,) adds at a row of scores (N, C)."""
    begins = np.searchsorted(e.member_label, np.arange(len(e.label_first)))

    def gain(row: int) -> np.ndarray:
        if not len(begins):
            return np.zeros(0)
        members = scores[row][e.member_class]
        top = np.maximum.reduceat(members, begins)
        if not total:
            return top
        return top + np.log(np.add.reduceat(np.exp(members - np.repeat(top, np.diff([*begins, len(members)]))), begins))

    return gain


def _gather(out: np.ndarray, target: np.ndarray, worths: np.ndarray, *, total: bool) -> None:
    """Bring what ways are worth to where they lead, in place."""
    np.maximum.at(out, target, worths)
    if total:
        sums = np.zeros(len(out))
        np.add.at(sums, target, np.exp(worths - out[target]))
        some = sums > 0
        out[some] += np.log(sums[some])


def _way(
    problem: Problem,
    scores: np.ndarray,
    worth: Sequence[np.ndarray],
    codes: Sequence[int],
    gain: Callable[[int], np.ndarray],
    choose: Choice,
) -> list[int] | None:
    """Back from the last border to the first, along the states that are chosen."""
    read = problem.read
    automaton, e = read.span.automaton, read.span.automaton.edges
    first, row = int(problem.offsets[0]), len(problem.offsets) - 1
    ends = np.flatnonzero(worth[-1] > -np.inf)
    if not len(ends):
        return None
    state = int(ends[choose(first + len(codes), ends, worth[-1][ends])])
    labels: list[int] = []
    for offset in range(first + len(codes) - 1, first - 1, -1):
        here, code = worth[offset - first], codes[offset - first]
        is_asked = row >= 0 and problem.offsets[row] == offset
        if code >= 0:
            before = np.flatnonzero((automaton.after[code] == state) & (here > -np.inf))
            if code == END and not read.rule.at(offset):
                before = before[before == automaton.size - 1]
            state = int(before[choose(offset, before, here[before])])
            continue
        if state == automaton.size - 1:
            live = np.flatnonzero(here > -np.inf)
            before = live[_may_be_over(automaton.accept, live, here_may_end=read.rule.at(offset))]
            at, label = choose(offset, before, here[before]), -1
        else:
            pairs = e.back[e.back_first[state] : e.back_first[state + 1]]
            before = e.source[pairs]
            added = gain(row)[e.label[pairs]] if is_asked else 0.0
            at = choose(offset, before, here[before] + added)
            label = int(e.label[pairs[at]])
        state = int(before[at])
        if is_asked:
            labels.append(label)
            row -= 1
    return labels[::-1]
