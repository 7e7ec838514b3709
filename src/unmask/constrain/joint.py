"""Tokens for many positions at once: the best that go together, a fair draw of them, the most that can be kept.

Positions that are possible one by one may be impossible together. All three questions are one pass from left to right
over the states that can still be completed, with what each state is worth so far, and one back along the way taken.

It does not know rows or canvases; `holes` asks about one span at a time.

Source: Suresh et al. 2025, DINGO, arXiv:2505.23061 (the best string over position x state); Viterbi 1967; Rabiner 1989
(forward filter, backward sample, eq. 18 to 25).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


_ROWS = 16
"""Positions whose log-probabilities are sorted by class at once, so that they stay near the processor."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Positions of a span that are asked about.

    Args:
        read: the span, and what stands in it.
        offsets: (N,) rising offsets into the span, taken as open.
        scores: (N, C) nats of each class.
    """

    read: "Reading"
    offsets: np.ndarray
    scores: np.ndarray


def alone(log_probs: Tensor, positions: Tensor, keys: tuple[Tensor, Tensor] | None) -> Tensor:
    """(N,) tokens where nothing constrains: the most probable ones, or drawn by the Gumbel-max rule."""
    if keys is None:
        return log_probs.argmax(-1)
    key = seeds.key(keys[0], "token", keys[1], positions)
    tokens = torch.arange(log_probs.shape[1], device=log_probs.device)
    noise = seeds.uniform(seeds.key(key[:, None], "gumbel", tokens))
    return (log_probs - torch.log(-torch.log(noise))).argmax(-1)


def best(read: "Reading", offsets: np.ndarray, log_probs: Tensor) -> np.ndarray:
    """(N,) the most probable tokens, of log-probabilities (N, V), that go together."""
    problem = Problem(read, offsets, _by_class(read.span.automaton, log_probs, total=False))
    labels = _walk(problem, total=False, choose=lambda _, states, worth: int(worth.argmax()))
    held = _held(read.span.automaton, _found(labels))
    chosen = np.where(held, problem.scores, -np.inf).argmax(1)
    return _tokens(read.span.automaton, chosen, log_probs, None)


def draw(read: "Reading", offsets: np.ndarray, log_probs: Tensor, seed: Tensor, turn: Tensor) -> np.ndarray:
    """(N,) tokens drawn from all that go together; seed and turn (one number each) and the position key the noise."""
    seed, turn, start, width = seed.cpu(), turn.cpu(), read.span.start, len(read.codes)

    def coins(purpose: str, at: np.ndarray) -> np.ndarray:
        """A number from 0 to 1 for each offset."""
        return seeds.uniform(seeds.key(seed, purpose, turn, torch.from_numpy(start + at))).numpy()

    ways = coins("joint state", np.arange(width + 1))
    problem = Problem(read, offsets, _by_class(read.span.automaton, log_probs, total=True))
    labels = _walk(problem, total=True, choose=lambda offset, _, worth: int(_drawn(worth[None], ways[[offset]])[0]))
    held = _held(read.span.automaton, _found(labels))
    chosen = _drawn(np.where(held, problem.scores, -np.inf), coins("joint class", offsets))
    return _tokens(read.span.automaton, chosen, log_probs, coins("joint token", offsets))


def _drawn(worth: np.ndarray, coins: np.ndarray) -> np.ndarray:
    """(N,) which of nats (N, M) each coin (N,) falls on; never one of -inf."""
    mass = np.exp(worth - worth.max(1, keepdims=True)).cumsum(1)
    at = (mass <= coins[:, None] * mass[:, -1:]).sum(1)
    last = worth.shape[1] - 1 - (worth[:, ::-1] > -np.inf).argmax(1)
    return np.minimum(at, last)


def _by_class(automaton: Automaton, log_probs: Tensor, *, total: bool) -> np.ndarray:
    """(N, C) nats of each class: all its tokens together, or the most probable one; at least FLOOR where it has any."""
    order, begins = automaton.by_class
    classes = np.flatnonzero(np.diff(begins))
    out = np.full((len(log_probs), automaton.num_classes), -np.inf)
    columns = torch.from_numpy(order)
    for first in range(0, len(log_probs), _ROWS):
        part = log_probs[first : first + _ROWS].cpu().index_select(1, columns).double().numpy()
        top = part.max(1, keepdims=True)
        if total:
            with np.errstate(divide="ignore"):
                found = np.log(np.add.reduceat(np.exp(part - top), begins[classes], axis=1)) + top
        else:
            found = np.maximum.reduceat(part, begins[classes], axis=1)
        out[first : first + _ROWS, classes] = np.maximum(found, FLOOR)
    return out


def _tokens(automaton: Automaton, chosen: np.ndarray, log_probs: Tensor, coins: np.ndarray | None) -> np.ndarray:
    """(N,) a token of each chosen class: the most probable one, or by a coin (N,) from 0 to 1."""
    order, begins = automaton.by_class
    out = np.empty(len(chosen), np.int64)
    for row, kind in enumerate(chosen):
        tokens = order[begins[kind] : begins[kind + 1]]
        nats = log_probs[row].cpu()[torch.from_numpy(tokens)].double().numpy()
        at = int(nats.argmax())
        if coins is not None and nats[at] > -np.inf:
            mass = np.exp(nats - nats[at]).cumsum()
            at = int(np.searchsorted(mass, coins[row] * mass[-1], side="right"))
        out[row] = tokens[min(at, len(tokens) - 1)]
    return out


def _found(labels: list[int] | None) -> list[int]:
    assert labels is not None, "a span was asked for tokens that can't be completed"
    return labels


def kept(read: "Reading", done: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Which of the written offsets (D,) may stay so that as little weight (D,) as possible is opened; None: no way."""
    scores = np.repeat(-np.asarray(weight, np.float64)[:, None], read.span.automaton.num_classes, axis=1)
    codes = read.codes[done]
    scores[np.arange(len(done)), codes] = 0.0
    if not len(done):
        return None
    problem = Problem(read, done, scores)
    labels = _walk(problem, total=False, choose=lambda _, states, worth: int(worth.argmax()))
    if labels is None:
        return None
    return _held(read.span.automaton, labels)[np.arange(len(done)), codes]


def _held(automaton: Automaton, labels: Sequence[int]) -> np.ndarray:
    """(N, C) bool: the classes of each label."""
    e = automaton.edges
    held = np.zeros((len(labels), automaton.num_classes), bool)
    for row, label in enumerate(labels):
        first, last = np.searchsorted(e.member_label, [label, label + 1])
        held[row, END if label == -1 else e.member_class[first:last]] = True
    return held


def _walk(problem: Problem, *, total: bool, choose: Choice) -> list[int] | None:
    """The label that each asked position takes (-1: the end of text), or None where nothing can be completed.

    Args:
        total: whether ways into a state add up their probabilities, or the best one counts.
        choose: how to choose the last state, and the state before each.
    """
    read, scores = problem.read, problem.scores
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
    return _way(problem, worth, codes, gain, choose)


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
