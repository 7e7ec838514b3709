"""Keys and values of positions that are final, one slot per canvas position.

In a forward the fed positions stand in their slots with fresh keys and values, whatever was there before; afterwards
only those that the caller wants to keep stay known. A known position that is fed again without being kept is as it was
before. Inference only: no gradient flows through a cache.

It does not know who sees whom, nor whether what it keeps is exact (block-causal models) or not (bidirectional ones).
"""

from collections.abc import Callable, Iterator, Sequence
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


Shelf = Callable[[int], tuple[Tensor, Tensor]]
"""A layer to the keys and values (P, size, K, d) of the first slots of some rows (P,), as they are now."""


@dataclass(slots=True, kw_only=True)
class Visit:
    """One forward over a cache.

    Attributes:
        there: (R, S) bool, slots that are known or fed; S is up to the last such slot, `rounded`.
        rows: (R,) rows of the cache.
        fed: (r, w), (N,) each: where in the batch the fed positions stand.
        full: whether all of the batch is fed.
        slots: (N,) where their keys and values lie in the store.
        layers: of each layer, the store of keys and that of values (all slots, K, d).
    """

    cache: "KVCache"
    there: Tensor
    rows: Tensor
    fed: tuple[Tensor, Tensor]
    full: bool
    slots: Tensor
    layers: Sequence[tuple[Tensor, Tensor]]
    _shelf: Shelf | None = None

    @property
    def size(self) -> int:
        """S."""
        return self.there.shape[1]

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Put fresh keys and values (N, K, d) of the fed positions into their slots."""
        for store, fresh in zip(self.layers[layer], (k, v), strict=True):
            store.index_copy_(0, self.slots, fresh if fresh.dtype == store.dtype else fresh.to(store.dtype))

    def shelf(self, part: Tensor, size: int) -> Shelf:
        """Where the layers find the first slots of some rows of the batch (P,)."""
        return self.cache.shelf(self.rows[part], size)

    def swap(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write fresh keys and values (R, W, K, d) of the fed positions; get those of all slots, (R, S, K, d)."""
        if self.full:
            self.write(layer, k.flatten(0, 1), v.flatten(0, 1))
        else:
            self.write(layer, k[self.fed], v[self.fed])
        if self._shelf is None:
            self._shelf = self.cache.shelf(self.rows, self.size)
        return self._shelf(layer)


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

    def shelf(self, rows: Tensor, size: int) -> Shelf:
        """Where the layers find the first `size` positions of rows (P,)."""
        every = len(rows) == self.k.shape[1] and bool((rows.diff() == 1).all())  # all of them, in order
        which = slice(None) if every else rows
        return lambda layer: (self.k[layer, which, :size], self.v[layer, which, :size])

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
        known = there[r, at]
        there[r, at] = True
        kept = torch.zeros_like(known) if keep is None else keep[r, w]
        lent = lie[known & ~kept]  # known and fed, but not to be replaced
        final = row[kept], at[kept]
        self.known[final] = False  # and so it stays if the forward fails
        stores = self.k.flatten(1, 2), self.v.flatten(1, 2)
        before = [store[:, lent] for store in stores] if len(lent) else []
        layers = tuple(zip(*(store.unbind(0) for store in stores), strict=True))
        try:
            yield Visit(
                cache=self, there=there, rows=rows, fed=(r, w), full=len(r) == slots.numel(), slots=lie, layers=layers
            )
            self.known[final] = True
        finally:
            for store, old in zip(stores, before, strict=bool(before)):
                store[:, lent] = old
            if len(final[0]):
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
