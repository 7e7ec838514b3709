"""What every model promises. Decoding, objectives and the engine know models only as this.

A network reads tokens into features and turns features into logits in two calls, so that logits are computed for the
rows asked for and for no others.
"""

from typing import Protocol

import torch
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.vocab import Traits, Vocab


class Cache(Protocol):
    """Keys and values of positions that are final, one slot per canvas position.

    Attributes:
        held: (B,) how many leading positions of each row are kept.
    """

    held: Tensor

    def forget(self, rows: Tensor | None = None, start: int = 0) -> None:
        """Free the slots from `start` on, of some rows (R,) or of all."""
        ...

    def trim(self, rows: Tensor, start: Tensor) -> None:
        """Know nothing of some rows (R,) from a position of each (R,) on."""
        ...


class Denoiser(Protocol):
    """A network that believes something about every token of a row.

    Attributes:
        vocab, traits: see `unmask.base.vocab`.
        max_length: positions that one row may have.
    """

    vocab: Vocab
    traits: Traits
    max_length: int

    @property
    def device(self) -> torch.device:
        """Where its inputs have to be."""
        ...

    def cache(self, rows: int, length: int, spare: int = 0) -> Cache:
        """An empty cache for rows of `length` positions, and `spare` slots behind them for shadows."""
        ...

    def read(
        self,
        tokens: Tensor,
        *,
        positions: Tensor,
        attend: Attend,
        t: Tensor | None = None,
        cache: Cache | None = None,
        rows: Tensor | None = None,
        keep: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """Features of every position fed.

        Args:
            tokens, positions: (R, W) int64; a position of -1 is a filler that nobody sees.
            attend: over slots: the place in the row of W, or the canvas position where a cache is given.
            t: (R,) time, for networks with a clock.
            cache, rows, keep: the cache, which of its rows these are (R,), and which positions (R, W) stay in it.
            slots: (R, W) where they stand in the cache; None is at their positions.
        Returns:
            (R, W, D).
        """
        ...

    def head(self, features: Tensor) -> Tensor:
        """Logits (N, V) of features (N, D)."""
        ...


class Carrier(Denoiser, Protocol):
    """A network that reads what it said about a block the last time (`Traits.carries`); the cache keeps that."""

    def carry(self, logits: Tensor, *, cache: Cache, rows: Tensor, positions: Tensor) -> None:
        """Remember what was believed at some positions, for the next forward over this cache.

        Args:
            logits: (N, V), as tokens were drawn from them (temperature applied).
            cache, rows, positions: where; (N,) each.
        """
        ...


class Layered(Denoiser, Protocol):
    """A network whose first layer can be asked alone, at the cost of that layer. Nobody has to be one."""

    def first_layer(self, tokens: Tensor, *, positions: Tensor, attend: Attend) -> Tensor:
        """What the first layer hands to the second, (R, W, D), of rows that are read without a cache; see `read`."""
        ...
