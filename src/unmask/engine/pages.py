"""Keys and values in pages that rows point at, and who holds which page.

Pages that hold a text are found by it, so requests that begin alike share them. A page is free, held by rows, or idle:
held by nobody, but still to be found; idle pages are given away when free ones run out, least recently used first.

It does not know requests or models.
"""

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from unmask.nn.cache import LANES, KVCache, Shelf, rounded

PAGE = LANES
"""Positions of a page."""


class Pages(KVCache):
    """A cache whose rows are tables of pages. Page 0 is nobody's and holds zeros.

    Args:
        like: an empty cache of the model, for layers, heads, numbers and device.
        rows: rows of the table.
        length: positions that a row may have.
        num_pages: in all, page 0 included.

    Attributes:
        table: (B, pages of a row), 0 where a row has none.
    """

    def __init__(self, like: KVCache, *, rows: int, length: int, num_pages: int) -> None:
        layers, heads, size = like.k.shape[0], like.k.shape[-2], like.k.shape[-1]
        self.k = like.k.new_zeros(layers, num_pages, PAGE, heads, size)
        self.v = torch.zeros_like(self.k)
        self._desk = self.k.new_empty(2, 0, PAGE, heads, size)
        self.table = torch.zeros(rows, pages_for(rounded(length)), dtype=torch.int64, device=like.k.device)
        self._start(rows, rounded(length), like.k.device)

    def place(self, rows: Tensor, positions: Tensor) -> Tensor:
        """(N,) where the positions (N,) of rows (N,) lie among all slots of a layer."""
        return self.table[rows, positions // PAGE] * PAGE + positions % PAGE

    def shelf(self, rows: Tensor, size: int) -> Shelf:
        """Where the layers find the first `size` positions, whole pages, of rows (P,); each is good until the next."""
        pages = self.table[rows, : pages_for(size)]
        shape = len(rows), size, *self.k.shape[-2:]
        if len(rows) == 1 and bool((pages.diff() == 1).all()):  # they lie one after the other: nothing is copied
            first = int(pages[0, 0])
            span = slice(first, first + pages.shape[1])
            return lambda layer: (self.k[layer, span].view(shape), self.v[layer, span].view(shape))
        desk = self._desk_for(pages.numel())
        return partial(
            self.gathered, pages=pages.flatten(), desk=desk, found=(desk[0].view(shape), desk[1].view(shape))
        )

    def gathered(
        self, layer: int, *, pages: Tensor, desk: Tensor, found: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of some pages, side by side on a desk, as `found` looks at it."""
        for store, out in zip((self.k, self.v), desk, strict=True):
            torch.index_select(store[layer], 0, pages, out=out)
        return found

    def _desk_for(self, num_pages: int) -> Tensor:
        """Room (2, num_pages, PAGE, K, d) for what is gathered, the same each time: fresh memory costs twice a copy."""
        if num_pages > self._desk.shape[1]:
            with torch.inference_mode(False):
                self._desk = self.k.new_empty(2, num_pages, *self.k.shape[2:])
        return self._desk[:, :num_pages]

    def hold(self, row: int, pages: Sequence[int], *, first: int = 0) -> None:
        """Let a row point at pages, from its page `first` on."""
        self.table[row, first : first + len(pages)] = torch.tensor(pages, dtype=torch.int64, device=self.table.device)

    def know(self, row: int, length: int) -> None:
        """The first positions of a row are known: its pages hold them."""
        self.known[row, :length] = True
        self.recount(torch.tensor([row], device=self.held.device))

    def let_go(self, row: int) -> None:
        """A row points at nothing, and nothing of it is known."""
        self.table[row] = 0
        self.known[row] = False
        self.recount(torch.tensor([row], device=self.held.device))

    def clear(self, pages: Iterable[int]) -> None:
        """Zeros: what a failed row has left may be no numbers, which even a weight of zero does not stop."""
        which = list(pages)
        self.k[:, which] = 0
        self.v[:, which] = 0


class Pool:
    """Who holds which page. Page 0 is never given out."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages - 1
        self._free = list(range(num_pages - 1, 0, -1))
        self._holders: Counter[int] = Counter()
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def num_free(self) -> int:
        """Pages that nobody holds, idle ones among them."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        """Pages that nobody holds and that can still be found by what they hold."""
        return len(self._idle)

    def take(self, count: int) -> list[int] | None:
        """So many pages, or None if there are fewer."""
        if count > self.num_free:
            return None
        while len(self._free) < count:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
            self._free.append(page)
        pages = [self._free.pop() for _ in range(count)]
        self._holders.update(pages)
        return pages

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """Pages of the longest run of keys, from the first on, that is there; they are held from now on."""
        pages = []
        for key in keys:
            if (page := self._page_of.get(key)) is None:
                break
            self._idle.pop(page, None)
            pages.append(page)
        self._holders.update(pages)
        return pages

    def publish(self, page: int, key: bytes) -> None:
        """A held page can be found by what it holds, unless another one can already."""
        if key not in self._page_of and page not in self._key_of:
            self._page_of[key], self._key_of[page] = page, key

    def drop(self, pages: Sequence[int], *, spoilt: bool = False) -> list[int]:
        """Hold pages no more; `spoilt` ones hold nothing that may be found. Those that nobody holds now."""
        gone = []
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            del self._holders[page]
            gone.append(page)
            if spoilt and page in self._key_of:
                del self._page_of[self._key_of.pop(page)]
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)
        return gone


class Chain:
    """Keys of the pages of one text, each by all text up to it; what a page holds depends on nothing else.

    Keys and values of a position depend on its whole block, so a unit is a whole number of pages and of blocks.

    Args:
        block: positions a block, 1 for causal reading.
        share: chains that say other things here have no key in common.
    """

    def __init__(self, block: int, share: str = "") -> None:
        self.unit = block * PAGE // _common(block)
        self.keys: list[bytes] = []
        self._last = hashlib.blake2b(f"blocks of {block} {share}".encode(), digest_size=16).digest()

    def extend(self, tokens: Sequence[int]) -> None:
        """More text: whole units."""
        assert len(tokens) % self.unit == 0
        for at in range(0, len(tokens), self.unit):
            text = b"".join(token.to_bytes(4, "little") for token in tokens[at : at + self.unit])
            self._last = hashlib.blake2b(self._last + text, digest_size=16).digest()
            self.keys += [self._last + i.to_bytes(2, "little") for i in range(self.unit // PAGE)]


def pages_for(length: int) -> int:
    """Pages that hold so many positions."""
    return -(-length // PAGE)


def _common(block: int) -> int:
    """The greatest common divisor with a page."""
    a, b = block, PAGE
    while b:
        a, b = b, a % b
    return a
