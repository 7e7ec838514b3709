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

LANES, TAIL, RUN = 16, 192, 512
"""Of `rounded`: what a processor adds up at once, and how many numbers its libraries add up before they cut the sum."""


def rounded(size: int) -> int:
    """Slots for attention to look at so that its sums run in the same order, whatever else is in the batch.

    What is masked adds zeros. More zeros at the end change no bit of a sum as long as it is cut in the same places:
    measured for matrix products and fused attention of torch 2.13 on x86-64 (`tests/nn/test_pack.py`).
    """
    runs, tail = divmod(size, RUN)
    tail = -(-tail // LANES) * LANES
    return runs * RUN + (tail if tail <= TAIL else RUN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One forward over a cache.

    Attributes:
        there: (R, S) bool, slots that are known or fed; S is up to the last such slot, `rounded`.
        rows: (R,) rows of the cache.
        fed: (r, w), (N,) each: where in the batch the fed positions stand.
        slots: (N,) where their keys and values lie in the store.
    """

    cache: "KVCache"
    there: Tensor
    rows: Tensor
    fed: tuple[Tensor, Tensor]
    slots: Tensor

    @property
    def size(self) -> int:
        """S."""
        return self.there.shape[1]

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Put fresh keys and values (N, K, d) of the fed positions into their slots."""
        for store, fresh in ((self.cache.k, k), (self.cache.v, v)):
            store[layer].flatten(0, 1)[self.slots] = fresh.to(store.dtype)

    def seen(self, layer: int, part: Tensor | None = None, size: int | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (P, size, K, d) of the first slots of some rows of the batch (P,), or of all."""
        rows = self.rows if part is None else self.rows[part]
        return self.cache.slots_of(layer, rows, size or self.size)

    def swap(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write fresh keys and values (R, W, K, d) of the fed positions; get those of all slots, (R, S, K, d)."""
        self.write(layer, k[self.fed], v[self.fed])
        return self.seen(layer)


class KVCache:
    """Room for `rows` rows of `length` positions, each in a place of its own.

    Attributes:
        k, v: (layers, B, L, K, head_dim), L is `rounded`.
        known: (B, L) bool, which slots hold a final position.
        held: (B,) how many leading positions of each row are known.
        reach: (B,) positions up to the last one that is known.
    """

    def __init__(self, layers: int, rows: int, length: int, heads: int, head_dim: int, *, like: Tensor) -> None:
        shape = (layers, rows, rounded(length), heads, head_dim)
        self.k, self.v = like.new_zeros(shape), like.new_zeros(shape)
        self._start(rows, shape[2], like.device)

    def _start(self, rows: int, length: int, device: torch.device) -> None:
        self.known = torch.zeros(rows, length, dtype=torch.bool, device=device)
        self.held = torch.zeros(rows, dtype=torch.int64, device=device)
        self.reach = torch.zeros_like(self.held)

    def place(self, rows: Tensor, positions: Tensor) -> Tensor:
        """(N,) where the positions (N,) of rows (N,) lie among all slots of a layer."""
        return rows * self.k.shape[2] + positions

    def slots_of(self, layer: int, rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Keys and values (P, size, K, d) of the first `size` positions of rows (P,)."""
        if len(rows) == self.k.shape[1] and bool((rows.diff() == 1).all()):  # all of them, in order
            return self.k[layer, :, :size], self.v[layer, :, :size]
        return self.k[layer, rows, :size], self.v[layer, rows, :size]

    @contextmanager
    def visit(self, slots: Tensor, rows: Tensor | None, keep: Tensor | None) -> Iterator[Visit]:
        """One forward: fill the `slots` (R, W) while it lasts, then know those of `keep` (R, W).

        Args:
            slots: of what is fed; -1 is a filler. No row may name a slot twice.
            rows: (R,) distinct rows of the cache; None is all of them in order.
            keep: (R, W) bool; None keeps nothing.
        """
        rows = torch.arange(len(self.held), device=self.held.device) if rows is None else rows
        r, w = (slots >= 0).nonzero(as_tuple=True)
        row, at = rows[r], slots[r, w]
        lie = self.place(row, at)
        reach = max(int(self.reach[rows].max()), int(slots.max()) + 1, 1)
        size = rounded(reach)
        there = self.known[rows, :size]
        there[r, at] = True
        kept = torch.zeros_like(at, dtype=torch.bool) if keep is None else keep[r, w]
        lent = lie[self.known[row, at] & ~kept]  # known and fed, but not to be replaced
        self.known[row[kept], at[kept]] = False  # and so it stays if the forward fails
        stores = self.k.flatten(1, 2), self.v.flatten(1, 2)
        before = [store[:, lent] for store in stores]
        try:
            yield Visit(cache=self, there=there, rows=rows, fed=(r, w), slots=lie)
            self.known[row[kept], at[kept]] = True
        finally:
            for store, old in zip(stores, before, strict=True):
                store[:, lent] = old
            self.recount(rows, size)

    def forget(self, rows: Tensor | None = None, start: int = 0) -> None:
        """Free the slots from `start` on, of some rows (R,) or of all."""
        which = slice(None) if rows is None else rows
        self.known[which, start:] = False
        self.k[:, which, start:] = 0  # a failed row may have left numbers that even a weight of zero does not stop
        self.v[:, which, start:] = 0
        self.recount(torch.arange(len(self.held), device=self.held.device) if rows is None else rows)

    def trim(self, rows: Tensor, start: Tensor) -> None:
        """Know nothing of some rows (R,) from a position of each (R,) on."""
        self.known[rows] &= torch.arange(self.known.shape[1], device=rows.device) < start[:, None]
        self.recount(rows)

    def recount(self, rows: Tensor, size: int | None = None) -> None:
        """Count what is known of some rows; behind `size` nothing is."""
        known = self.known[rows, :size]
        self.held[rows] = known.cumprod(1).sum(1)
        self.reach[rows] = (known * torch.arange(1, known.shape[1] + 1, device=known.device)).amax(1)
