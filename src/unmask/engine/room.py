"""Room for keys and values: which rows have pages, what they share, and what is put aside when there are too few.

What an exact cache holds can be read again, so a row that has to give way just forgets it. What an approximate one
holds can't: it is put aside, and put back.

It knows rows of a cache and texts of ids, not requests or plans.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unmask.base.denoiser import Cache, Denoiser
from unmask.base.errors import TooLong
from unmask.engine.pages import PAGE, Chain, Pages, Pool, pages_for
from unmask.nn.cache import KVCache

GIB = 1 << 30
SPARE = 1024
"""Slots behind the longest row, for what travels beside the text; they cost memory only where pages lie in them."""


@dataclass(slots=True)
class Holding:
    """What a row has.

    Attributes:
        pages: of each of its rows in the cache (a guided row has two).
        exact: whether what it holds can be read again.
        chain: of the text that its pages hold, where they may be found by it.
        aside: keys, values and what was known, of each of its rows, while it had to give way.
    """

    pages: dict[int, list[int]]
    exact: bool
    chain: Chain | None
    aside: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


class Room:
    """The cache of an engine.

    Args:
        model: whose keys and values.
        rows: of the engine; guided ones have a second row in the cache, `rows` behind the first.
        positions: there is memory for; None is all rows at full length, at most a GiB.
        share: whether pages may be found by their text.
    """

    def __init__(self, model: Denoiser, rows: int, positions: int | None, *, share: bool) -> None:
        self.rows, self.share = rows, share
        self._held: dict[int, Holding] = {}
        self.pool: Pool | None = None
        self.cache: Cache | None = None
        self.num_pages = 0
        self.length = model.max_length
        if model.traits.clock:
            return
        like = model.cache(1, 1)
        if type(like) is not KVCache:  # it keeps more than keys and values: a place of its own for each row
            self.length = self.length if positions is None else min(self.length, positions // rows)
            self.cache = model.cache(rows if model.traits.carries else 2 * rows, self.length)
            return
        page_bytes = 2 * like.k[:, 0, 0].numel() * like.k.element_size() * PAGE
        one = 2 * pages_for(model.max_length + SPARE)  # a guided row with shadows behind it, where there is no other
        most = min(max(rows * pages_for(model.max_length), one), max(1, GIB // page_bytes))
        num = most if positions is None else pages_for(positions)
        self.pool, self.num_pages = Pool(num + 1), num
        self.cache = Pages(like, rows=2 * rows, length=model.max_length + SPARE, num_pages=num + 1)

    @property
    def num_held(self) -> int:
        """Pages that rows hold."""
        return 0 if self.pool is None else self.num_pages - self.pool.num_free

    def could_hold(self, length: int, spare: int, *, twice: bool) -> None:
        """Raise TooLong for a row, with slots to spare behind it, that has no room even if it is alone."""
        if length > self.length:
            raise TooLong(f"a row of {length} positions, and each has room for {self.length}; raise cache_positions")
        if spare > SPARE:
            raise TooLong(f"{spare} slots beside a row are asked for, and there are {SPARE}; lower block or lookahead")
        need = pages_for(length + spare) * (2 if twice else 1)
        if self.pool is not None and need > self.num_pages:
            raise TooLong(
                f"a row of {length} positions needs {need} pages of keys and values, and there are {self.num_pages}; "
                "raise cache_positions"
            )

    def has(self, row: int) -> bool:
        """Whether a row was opened."""
        return row in self._held

    def holds(self, row: int) -> bool:
        """Whether a row has pages now."""
        return row in self._held and any(self._held[row].pages.values())

    def open(self, row: int, text: Sequence[int], block: int, *, twice: bool, share: str = "") -> int:
        """A row comes in.

        Args:
            row: of the engine.
            text: ids whose keys and values are final, up to where the row has to read for itself.
            block: positions a block of its exact reading; 0 where it has none.
            twice: whether it is guided.
            share: pages are found only by rows that say the same here.
        Returns:
            How many positions of the text need not be read, because others have read them.
        """
        mine = [row, row + self.rows] if twice else [row]
        chain = Chain(block, share) if block and self.share and not twice and self.pool is not None else None
        self._held[row] = holding = Holding({r: [] for r in mine}, block > 0, chain)
        if chain is None:
            return 0
        assert self.pool is not None
        assert isinstance(self.cache, Pages)
        chain.extend(text[: len(text) // chain.unit * chain.unit])
        found = self.pool.find(chain.keys)
        over = len(found) % (chain.unit // PAGE)  # a part of a unit is of no use
        if over:
            self.pool.drop(found[-over:])
            del found[-over:]
        holding.pages[row] = found
        self.cache.hold(row, found)
        self.cache.know(row, len(found) * PAGE)
        return len(found) * PAGE

    def grow(self, row: int, end: int) -> bool:
        """Pages for the positions of a row up to `end`; False, and nothing has changed, if there are too few."""
        if self.pool is None:
            return True
        assert isinstance(self.cache, Pages)
        holding = self._held[row]
        needs = {r: max(pages_for(end), holding.aside[r][0].shape[1] if holding.aside else 0) for r in holding.pages}
        lacking = {r: max(0, need - len(holding.pages[r])) for r, need in needs.items()}
        if not holding.aside and not any(lacking.values()):
            return True
        fresh = self.pool.take(sum(lacking.values()))
        if fresh is None:
            return False
        for r, count in lacking.items():
            some, fresh = fresh[:count], fresh[count:]
            self.cache.hold(r, some, first=len(holding.pages[r]))
            holding.pages[r] += some
        for r, (k, v, known) in holding.aside.items():
            back = holding.pages[r][: k.shape[1]]
            self.cache.k[:, back], self.cache.v[:, back], self.cache.known[r] = k, v, known
            self.cache.recount(torch.tensor([r], device=known.device))
        holding.aside = {}
        return True

    def trim(self, rows: Tensor, start: Tensor) -> None:
        """Know nothing of rows (R,) from a position of each (R,) on; guided ones have it twice."""
        assert self.cache is not None
        for add in (0, self.rows):
            self.cache.trim(rows + add, start)

    def publish(self, row: int, tokens: Tensor, held: int) -> None:
        """Let others find the pages of a row whose first `held` positions are final."""
        holding = self._held[row]
        chain = holding.chain
        if chain is None or self.pool is None:
            return
        known = len(chain.keys) * PAGE
        if (end := held // chain.unit * chain.unit) > known:
            chain.extend(tokens[row, known:end].tolist())
        final = held // chain.unit * chain.unit // PAGE
        for page, key in zip(holding.pages[row][:final], chain.keys[:final], strict=True):
            self.pool.publish(page, key)

    def give_way(self, row: int) -> None:
        """A row gives its pages up for now, if it has any. What can't be read again is put aside."""
        if not self.holds(row):
            return
        holding = self._held[row]
        if holding.exact:
            self.close(row)
            return
        assert self.pool is not None
        assert isinstance(self.cache, Pages)
        for r, pages in holding.pages.items():
            holding.aside[r] = self.cache.k[:, pages], self.cache.v[:, pages], self.cache.known[r].clone()
            self.cache.let_go(r)
            self.pool.drop(pages)
            holding.pages[r] = []

    def close(self, row: int, *, spoilt: bool = False) -> None:
        """A row leaves. What a `spoilt` one has written is wiped out."""
        holding = self._held.pop(row, None)
        if holding is None:
            return
        for r, pages in holding.pages.items():
            assert self.cache is not None
            if self.pool is None or not isinstance(self.cache, Pages):
                self.cache.forget(torch.tensor([r], device=self.cache.held.device))
                continue
            self.cache.let_go(r)
            gone = self.pool.drop(pages, spoilt=spoilt)
            if spoilt:
                self.cache.clear(gone)
