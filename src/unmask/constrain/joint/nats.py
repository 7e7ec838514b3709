"""Numbers that are given by their logarithms: sums of them, draws by them, and where they may be kept in float32.

It does not know automata.
"""

import numpy as np
import torch
from torch import Tensor

from unmask.base import seeds

TINY = 1e-280
"""Sums of linear numbers below it may have lost something that counts; of those above all that is lost is rounding."""

_LOWEST, LEAST = -700.0, 1e-305
"""Nats that numbers are made of at least, and what is less than any such number: nothing beside `TINY`. Logarithms of 0
and numbers of -inf or too small for a float64 take the processor ten to a hundred times as long."""


def alone(log_probs: Tensor, positions: Tensor, keys: tuple[Tensor, Tensor] | None) -> Tensor:
    """(N,) tokens where nothing constrains: the most probable ones, or drawn by the Gumbel-max rule."""
    if keys is None:
        return log_probs.argmax(-1)
    key = seeds.key(keys[0], "token", keys[1], positions)
    tokens = torch.arange(log_probs.shape[1], device=log_probs.device)
    noise = seeds.uniform(seeds.key(key[:, None], "gumbel", tokens))
    return (log_probs - torch.log(-torch.log(noise))).argmax(-1)


def coins(seed: Tensor, purpose: str, turn: Tensor, at: Tensor) -> np.ndarray:
    """A number from 0 to 1 for each position."""
    found: np.ndarray = seeds.uniform(seeds.key(seed, purpose, turn, at)).numpy()
    return found


def numbers(nats: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The numbers of nats that are to be added up; 1e-304 for all that is less, and for -inf."""
    return np.exp(np.maximum(nats, _LOWEST, out=out), out=out)


def drawn(worth: np.ndarray, coin: np.ndarray) -> np.ndarray:
    """(N,) which of nats (N, M) each coin (N,) falls on; never one of -inf."""
    mass = numbers(worth - worth.max(1, keepdims=True)).cumsum(1)
    at = (mass <= coin[:, None] * mass[:, -1:]).sum(1)
    last = worth.shape[1] - 1 - (worth[:, ::-1] > -np.inf).argmax(1)
    found: np.ndarray = np.minimum(at, last)
    return found


def fallen(nats: np.ndarray, mark: float) -> int:
    """Which of nats (M,) takes the sum of their numbers beyond a mark; the last if none does, and never one of -inf."""
    at = int(numbers(nats).cumsum().searchsorted(mark, side="right"))
    if at < len(nats) and nats[at] > -np.inf:
        return at
    held = np.flatnonzero(nats > -np.inf)  # rounded down, or up
    return int(held[min(int(held.searchsorted(at)), len(held) - 1)])


def rows_of(nats: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Rows (R,) in rising order of nats (N, M); all of them without a copy."""
    return nats if len(which) == len(nats) else nats[which]


def runs(nats: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(R,) the nats of the sums of runs of so many numbers (R,) each, given as nats one after the other; used up."""
    begins = counts.cumsum() - counts
    best = np.maximum.reduceat(nats, begins)
    nats -= np.repeat(np.where(best > -np.inf, best, 0.0), counts)
    found: np.ndarray = np.log(np.add.reduceat(numbers(nats, nats), begins))
    return np.add(found, best, out=found)


def joined(worth: np.ndarray, *, total: bool) -> np.ndarray:
    """(K,) nats (K, M) together: the greatest, or those of the sum of their numbers."""
    best: np.ndarray = worth.max(1)
    if not total or worth.shape[1] == 1:
        return best
    safe = np.where(best > -np.inf, best, 0.0)
    return np.log(numbers(worth - safe[:, None]).sum(1)) + best
