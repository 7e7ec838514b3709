"""Numbers that are given by their logarithms: sums of them, draws by them, and where they may be kept in float32.

It does not know automata.
"""

import numpy as np
import torch
from torch import Tensor

from unmask.base import seeds

TINY = 1e-280
"""Sums of linear numbers below it may have lost something that counts; of those above all that is lost is rounding."""

_LOOK = 64
"""Numbers of a row that tell whether all of them are of float32: one of float64 passes once in 2^29."""


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


def drawn(worth: np.ndarray, coin: np.ndarray) -> np.ndarray:
    """(N,) which of nats (N, M) each coin (N,) falls on; never one of -inf."""
    mass = np.exp(worth - worth.max(1, keepdims=True)).cumsum(1)
    at = (mass <= coin[:, None] * mass[:, -1:]).sum(1)
    last = worth.shape[1] - 1 - (worth[:, ::-1] > -np.inf).argmax(1)
    found: np.ndarray = np.minimum(at, last)
    return found


def compact(nats: np.ndarray, top: np.ndarray) -> np.ndarray:
    """A copy of nats (N, M) in float32 if that is what they were, as those of most networks are, or else in float64."""
    some = np.column_stack([nats[:, :_LOOK], top])
    return nats.astype(np.float32 if bool((some.astype(np.float32) == some).all()) else np.float64)


def rows_of(nats: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Those rows of nats (N, M) that are true in `which`; all of them without a copy."""
    return nats if bool(which.all()) else nats[which]


def log_sums(nats: np.ndarray, warm: np.ndarray, begins: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(N, C) nats of runs of tokens together, at temperatures (N, 1).

    Args:
        nats: (N, M) of tokens, the greatest of each row 0; used up.
        wanted: (N, C) bool, which of the runs count for a row.
    """
    nats = nats if bool((warm == 1).all()) else np.divide(nats, warm, out=nats)
    numbers = np.exp(nats)
    sums = np.add.reduceat(numbers, begins, axis=1)
    with np.errstate(divide="ignore"):
        found: np.ndarray = np.log(sums)
    ends = np.append(begins[1:], nats.shape[1])
    for row, run in zip(*np.nonzero((sums < TINY) & wanted), strict=True):  # it may be little beside the best token
        own = nats[row, begins[run] : ends[run]]
        best = own.max()
        if best > -np.inf:
            found[row, run] = np.log(np.exp(own - best).sum()) + best
    return found


def runs(nats: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(R,) the nats of the sums of runs of so many numbers (R,) each, given as nats one after the other; used up."""
    begins = counts.cumsum() - counts
    best = np.maximum.reduceat(nats, begins)
    best[best == -np.inf] = 0.0
    nats -= np.repeat(best, counts)
    with np.errstate(divide="ignore"):
        found: np.ndarray = np.log(np.add.reduceat(np.exp(nats, out=nats), begins))
    return np.add(found, best, out=found)


def joined(worth: np.ndarray, *, total: bool) -> np.ndarray:
    """(K,) nats (K, M) together: the greatest, or those of the sum of their numbers."""
    best: np.ndarray = worth.max(1)
    if not total or worth.shape[1] == 1:
        return best
    safe = np.where(best > -np.inf, best, 0.0)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(worth - safe[:, None]).sum(1)) + safe
