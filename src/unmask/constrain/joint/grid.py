"""The walk of `walk` for automata of few states: all ways at all steps in one table, and no question asked twice.

Numpy takes as long for a call as for a thousand numbers, so where states are few a step must be few calls. What a way
adds at a step is put into a table for all steps beforehand, impossible ways as minus infinity; a step is then one sum,
and the choices of all states at all steps are made at once. It must choose what `walk` chooses.
"""

from typing import TYPE_CHECKING

import numpy as np

from unmask.constrain.joint.nats import numbers
from unmask.constrain.joint.reading import OPEN

if TYPE_CHECKING:
    from unmask.constrain.joint.walk import Choice, Road

MOST_WAYS, MOST_NUMBERS = 1 << 12, 1 << 22
"""Ways of one step, and numbers of a table, beyond which it is no use."""

_LEAST = -1e300


def fits(size: int, fan: int, steps: int) -> int:
    """How many problems of so many steps, states and ways into a state go into one table; 0 where it is no use."""
    return MOST_NUMBERS // (size * fan * steps) if size * fan <= MOST_WAYS else 0


def through(road: "Road", start: np.ndarray, choose: "Choice") -> tuple[np.ndarray, np.ndarray]:
    """(K,) bool, which problems have a way, and the labels (K, M) that it takes.

    Args:
        start: (K, S + 1) bool, the states before the first step.
    """
    source, label, known = road.automaton.entries
    adds = _adds(road, label, known)
    ways, worth = np.empty_like(adds), [np.where(start, 0.0, -np.inf)]
    for step in range(len(adds)):
        np.add(worth[-1][:, source], adds[step], out=ways[step])
        best = ways[step].max(2)
        if road.total:
            best += np.log(numbers(ways[step] - np.maximum(best, _LEAST)[..., None]).sum(2))
        worth.append(best)
    last = np.array([worth[steps][k] for k, steps in enumerate(road.steps)])
    alive = np.asarray((last > -np.inf).any(1))
    when, k, state = np.nonzero(ways.max(3) > -np.inf)
    taken = np.zeros(ways.shape[:3], np.int64)
    if len(when):
        taken[when, k, state] = choose(k, road.firsts[k] + when, ways[when, k, state])
    labels, now, every = np.full(road.codes.shape, -1), np.zeros(len(alive), np.int64), np.flatnonzero(alive)
    if len(every):
        now[every] = choose(every, road.firsts[every] + road.steps[every], last[every])
    for back in range(len(adds) - 1, -1, -1):
        some = every[road.steps[every] > back]
        at = now[some], taken[back, some, now[some]]
        now[some], labels[some, back] = source[at], label[at]
    return alive, np.where(labels < known.shape[1] - 3, labels, -1)


def _adds(road: "Road", label: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(M, K, S + 1, F) what each way adds at each step."""
    table = np.full((*road.codes.shape, known.shape[1]), -np.inf)
    is_open = road.codes == OPEN
    place = road.place[is_open]
    table[is_open, :-3] = road.gains[place]
    table[is_open, -3] = table[is_open, -2] = road.ends[place]
    table[~is_open] = known[road.codes[~is_open]]
    table[~road.may_end, -3] = -np.inf
    adds = table.swapaxes(0, 1).take(label, axis=2)
    ahead = np.unpackbits(road.ahead[:, 1:], axis=2, count=road.automaton.size).view(bool)
    adds[~ahead.swapaxes(0, 1)] = -np.inf
    return adds
