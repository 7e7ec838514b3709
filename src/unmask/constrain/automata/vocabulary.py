"""A vocabulary as a tree of bytes: tokens that begin alike share what an automaton makes of the beginning.

It does not know what wrote the tokens.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np


class Vocabulary:
    """The bytes of every token.

    Args:
        tokens: V byte strings; b"" for ids that stand for no text, which no constraint allows.
        ends: ids that end a text.
    """

    def __init__(self, tokens: Sequence[bytes], ends: Sequence[int] = ()) -> None:
        self.tokens = tuple(tokens)
        self.ends = tuple(ends)

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def fingerprint(self) -> str:
        """Tells this vocabulary from every other one (hex)."""
        sizes = np.array([*map(len, self.tokens), -1, *self.ends], np.int64)
        return hashlib.sha256(sizes.tobytes() + b"".join(self.tokens)).hexdigest()

    @cached_property
    def levels(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """The tree by depth: (parent, byte) of the nodes one byte deeper, (token, node) of the tokens ending there."""
        text = np.frombuffer(b"".join(self.tokens), np.uint8)
        sizes = np.array([len(token) for token in self.tokens], np.int64)
        begins = np.cumsum(sizes) - sizes
        alive = np.flatnonzero(sizes)
        node = np.zeros(len(sizes), np.int64)
        found = []
        for depth in range(int(sizes.max(initial=0))):
            alive = alive[sizes[alive] > depth]
            keys, node[alive] = np.unique(node[alive] * 256 + text[begins[alive] + depth], return_inverse=True)
            ending = alive[sizes[alive] == depth + 1]
            found.append((keys // 256, keys % 256, ending, node[ending].copy()))
        return found
