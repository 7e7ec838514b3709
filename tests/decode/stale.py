"""A small network for which it matters that kept keys and values are stale, and rows for it."""

from functools import cache

import torch

from unmask.base.vocab import Traits, Vocab
from unmask.models.backbone import Shape, Transformer

LENGTH = 24
ROWS = [
    ([1, 2, *[0] * 16], [False] * 2 + [True] * 16),
    ([3, 1, 4, *[0] * 21], [False] * 3 + [True] * 21),
    ([2, *[0] * 7, 3, *[0] * 8, 1], [False, *[True] * 7, False, *[True] * 8, False]),
]


@cache
def network(sees="all"):
    """Sharp enough to go wrong."""
    shape = Shape(vocab_size=16, width=32, depth=2, heads=4, kv_heads=2, hidden=64, max_length=LENGTH, qk_norm=True)
    traits = Traits(sees="left", speaks="next") if sees == "left" else Traits(sees="all", reads=(1, 4))
    model = Transformer(shape, Vocab(size=16, mask=0, eos=1, bos=2), traits, seed=3).eval()
    with torch.no_grad():
        model.norm.weight.fill_(7.0)
    return model
