"""Keys and values of positions that are final, one slot per canvas position.

In a forward the fed positions stand in their slots with fresh keys and values, whatever was there before; afterwards
only those that the caller wants to keep stay known. A known position that is fed again without being kept is as it was
before. Inference only: no gradient flows through a cache.

It does not know who sees whom, nor whether what it keeps is exact (block-causal models) or not (bidirectional ones).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One forward over a cache.

    Attributes:
        size: S, slots up to the last one that is known or fed.
        there: (R, S) bool, slots that are known or fed.
    """

    cache: "KVCache"
    size: int
    there: Tensor
    rows: Tensor | None
    fed: tuple[Tensor, Tensor]
    slots: tuple[Tensor, Tensor]

    def swap(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write fresh keys and values (R, W, K, d) of the fed positions; get those of all slots, (R, S, K, d)."""
        seen = []
        for store, fresh in ((self.cache.k[layer], k), (self.cache.v[layer], v)):
            store[self.slots] = fresh[self.fed].to(store.dtype)
            seen.append(store[:, : self.size] if self.rows is None else store[self.rows, : self.size])
        return seen[0], seen[1]


class KVCache:
    """Room for `rows` rows of `length` positions.

    Attributes:
        k, v: (layers, B, L, K, head_dim).
        known: (B, L) bool, which slots hold a final position.
        held: (B,) how many leading positions of each row are known.
    """

    def __init__(self, layers: int, rows: int, length: int, heads: int, head_dim: int, *, like: Tensor) -> None:
        shape = (layers, rows, length, heads, head_dim)
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)
        self.known = torch.zeros(rows, length, dtype=torch.bool, device=like.device)
        self.held = torch.zeros(rows, dtype=torch.int64, device=like.device)

    @contextmanager
    def visit(self, positions: Tensor, rows: Tensor | None, keep: Tensor | None) -> Iterator[Visit]:
        """One forward: fill the slots of `positions` (R, W) while it lasts, then know those of `keep` (R, W).

        Args:
            positions: slots of the fed positions; -1 is a filler. No row may name a slot twice.
            rows: (R,) distinct rows of the cache; None is all of them in order.
            keep: (R, W) bool; None keeps nothing.
        """
        every = torch.arange(len(self.held), device=self.held.device)
        rows = None if rows is None or torch.equal(rows, every) else rows
        r, w = (positions >= 0).nonzero(as_tuple=True)
        fed = (r, w)
        slots = ((every if rows is None else rows)[r], positions[r, w])
        there = self.known.clone() if rows is None else self.known[rows]
        there[r, positions[r, w]] = True
        reach = there.any(0).nonzero()
        size = int(reach[-1]) + 1 if len(reach) else 1
        kept = torch.zeros_like(slots[0], dtype=torch.bool) if keep is None else keep[fed]
        final = tuple(x[kept] for x in slots)
        lend = self.known[slots] & ~kept  # known and fed, but not to be replaced
        lent = tuple(x[lend] for x in slots)
        self.known[final] = False  # and so it stays if the forward fails
        before = self.k[:, lent[0], lent[1]], self.v[:, lent[0], lent[1]]
        try:
            yield Visit(cache=self, size=size, there=there[:, :size], rows=rows, fed=fed, slots=slots)
            self.known[final] = True
        finally:
            self.k[:, lent[0], lent[1]], self.v[:, lent[0], lent[1]] = before
            self._count()

    def forget(self, rows: Tensor | None = None, start: int = 0) -> None:
        """Free the slots from `start` on, of some rows (R,) or of all."""
        which = slice(None) if rows is None else rows
        self.known[which, start:] = False
        self.k[:, which, start:] = 0  # a failed row may have left numbers that even a weight of zero does not stop
        self.v[:, which, start:] = 0
        self._count()

    def _count(self) -> None:
        self.held = self.known.cumprod(1).sum(1)
