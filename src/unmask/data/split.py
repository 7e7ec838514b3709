"""What is learned and what is held out: a choice by the content of each document, never by its order.

The same text is always on the same side, so a copy of a held-out document can't be learned by accident, and a corpus
that grows keeps its old held-out documents.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from unmask.base.errors import BadInput


def place(text: str) -> int:
    """Where a text falls among all texts: a uniform number below 2**64."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"unmask-split").digest())


def held_out(places: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which documents are held out.

    Args:
        places: (D,) `place` of each document.
        share: of all documents, 0 to below 1. Where it is above 0, at least one text is held out.
    Raises:
        BadInput: a share outside [0, 1), or no document is left on one of the sides.
    """
    if not 0 <= share < 1:
        raise BadInput(f"the held-out share is at least 0 and below 1, got {share}")
    if share == 0:
        return np.zeros(len(places), dtype=bool)
    held = places < np.uint64(int(share * 2**64))
    if not held.any() and len(places):
        held = places == places.min()
    if held.all():
        raise BadInput(
            f"{len(places)} documents can't be split into learned and held-out ones ({share} held out); give more "
            "documents, cut files into documents (separator), or set held_out to 0"
        )
    return held
