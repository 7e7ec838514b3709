"""Tokens as rows of one length, packed: row i is tokens [i L, (i + 1) L), whatever documents lie there.

Nothing is lost and nothing is padded but the end of the last row. Each piece of a document in a row is a document of
its own to attention, and its places count from 0.
"""

from dataclasses import dataclass

import numpy as np
import torch

from unmask.base import seeds
from unmask.base.attend import NOBODY
from unmask.base.batch import Batch
from unmask.data.tokens import Tokens


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of `length` tokens; `blank` stands in the padding of the last one."""

    tokens: Tokens
    length: int
    blank: int

    def __len__(self) -> int:
        return -(-len(self.tokens.ids) // self.length)

    def take(self, index: np.ndarray, epoch: int = 0) -> Batch:
        """The rows with these numbers (B,) as a batch; a row's number is its identity."""
        at = index[:, None] * self.length + np.arange(self.length)
        there = at < len(self.tokens.ids)
        at = np.minimum(at, len(self.tokens.ids) - 1)
        ids = np.where(there, self.tokens.ids[at], self.blank)
        document = np.searchsorted(self.tokens.starts, at, side="right") - 1
        begin = np.maximum(self.tokens.starts[document], at[:, :1])
        document = np.where(there, document - document[:, :1], NOBODY)
        return Batch(
            tokens=torch.from_numpy(ids.astype(np.int64)),
            documents=torch.from_numpy(document.astype(np.int64)),
            places=torch.from_numpy(np.where(there, at - begin, 0).astype(np.int64)),
            samples=torch.from_numpy(index.astype(np.int64)),
            epoch=epoch,
        )


@dataclass(frozen=True, slots=True)
class Loader:
    """Batches by number: batch s is a pure function of (rows, size, seed, s), so a run resumes by knowing its step.

    Every epoch goes through all rows once, in an order of its own; an epoch's last rows and the next one's first may
    share a batch.
    """

    rows: Rows
    size: int
    seed: int

    def batch(self, step: int) -> Batch:
        """Global batch number `step`."""
        first = step * self.size
        places = np.arange(first, first + self.size)
        epochs, within = places // len(self.rows), places % len(self.rows)
        index = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            index[here] = self._order(int(epoch))[within[here]]
        return self.rows.take(index, int(epochs[0]))

    def _order(self, epoch: int) -> np.ndarray:
        coins = seeds.uniform(seeds.key(self.seed, "order", epoch, torch.arange(len(self.rows))))
        order: np.ndarray = coins.argsort(stable=True).numpy()
        return order
