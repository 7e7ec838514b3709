"""One token after the other: autoregression, and the smallest block there is.

An AR model reads the last token and speaks of the next; a masked model that was trained on blocks of one reads the last
token and a mask.

Source: Bengio et al. 2003, "A neural probabilistic language model"; as a block size of 1: Arriola et al. 2025, BD3-LM,
arXiv:2503.09573, sec. 3.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.base.denoiser import Cache
from unmask.base.errors import Unsupported
from unmask.base.step import Plan
from unmask.base.vocab import Traits
from unmask.decode.windows.look import look


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """Feed what is not kept yet, ask about the first open position."""

    caches: ClassVar[bool] = True
    pads: ClassVar[bool] = False
    exact: ClassVar[bool] = True

    def check(self, traits: Traits) -> None:
        """Raise Unsupported where a model can't be read like this."""
        if traits.sees != "left" and 1 not in traits.reads and traits.block != 1:
            raise Unsupported(
                "this model was not trained to write token by token from the left context alone; "
                "rank='position' writes from left to right with both contexts"
            )

    def __call__(self, canvas: Canvas, traits: Traits, cache: Cache | None, rows: Tensor | None = None) -> Plan:
        """The plan of the next forward."""
        rows = (~canvas.done).nonzero()[:, 0] if rows is None else rows
        at = canvas.sealed[rows]
        shift = int(traits.speaks == "next")
        held = torch.zeros_like(at) if cache is None else cache.held[rows]
        return look(
            canvas,
            rows,
            feed=(torch.minimum(held, at - shift).clamp(min=0), (at + 1 - shift).clamp(min=1)),
            region=(at, at + 1),
            keep_to=at if cache is not None else None,
            steps=torch.ones_like(at),
            attend=Attend(kind="causal"),
            shift=shift,
        )
