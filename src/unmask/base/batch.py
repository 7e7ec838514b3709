"""Rows of training text, packed or not, and what they become once noise has been drawn."""

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B rows of L tokens.

    Args:
        tokens: (B, L) int64, clean.
        documents: (B, L) int64, which document of the row each slot belongs to; NOBODY (-1) is padding.
        places: (B, L) int64, place of the slot inside its document (of this row); 0 for padding.
        samples: (B,) int64, identity of the row in the data set: keys its noise, whatever batch it travels in.
        epoch: how often the data set was gone through before.
    """

    tokens: Tensor
    documents: Tensor
    places: Tensor
    samples: Tensor
    epoch: int = 0

    def part(self, start: int, stop: int) -> Self:
        """Some of the rows, for gradient accumulation or one of many workers."""
        return replace(
            self,
            tokens=self.tokens[start:stop],
            documents=self.documents[start:stop],
            places=self.places[start:stop],
            samples=self.samples[start:stop],
        )
