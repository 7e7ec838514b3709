"""Block by block under block-causal attention, with an exact cache.

A sealed block is read once more without masks, and its keys and values are kept for good. That reading rides in the
first forward of the next block, and so does the reading of the prompt: prompt, commit and denoise share one forward.

Source: Arriola et al. 2025, BD3-LM, arXiv:2503.09573, sec. 4 (block diffusion with cached keys and values);
Cheng et al. 2025, SDAR, arXiv:2510.06303.
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
from unmask.decode.knobs import count
from unmask.decode.windows.look import look, present, sizes
from unmask.decode.windows.shadows import can_judge, judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Feed what is not kept yet and the active block, ask about the active block.

    Args:
        block: positions a block, counted from position 0; None takes the model's own.
        steps: forwards for each block; None allows one per position.
        shadows: whether masks beside the block judge what is written in it.
        mask: the token of these; set from the vocabulary.
    """

    block: int | Tensor | None = None
    steps: int | Tensor | None = None
    shadows: bool = False
    mask: int | None = None
    caches: ClassVar[bool] = True
    pads: ClassVar[bool] = True
    guessed: ClassVar[str] = "targets"
    exact: ClassVar[bool] = True

    def check(self, traits: Traits) -> None:
        """Raise Unsupported where a model can't be read like this."""
        asked = traits.unit if self.block is None else self.block
        if traits.sees != "blocks" and (asked not in traits.reads or (self.block is None and asked == 1)):
            sizes = f"blocks of {', '.join(map(str, traits.reads))}" if traits.reads else "no blocks at all"
            raise Unsupported(
                f"block={self.block} asks for block-causal reading; this model was trained to read {sizes}; "
                "use a decoder with the whole window"
            )
        if self.shadows:
            can_judge(self.mask, traits)

    def __call__(self, canvas: Canvas, traits: Traits, cache: Cache | None, rows: Tensor | None = None) -> Plan:
        """The plan of the next forward."""
        rows = (~canvas.done).nonzero()[:, 0] if rows is None else rows
        block = sizes(self.block, traits, rows)
        start = canvas.sealed[rows] // block * block
        end = torch.minimum(start + block, present(canvas, rows))
        shift = int(traits.speaks == "next")  # the row about a block's first token is the one before it
        held = torch.zeros_like(start) if cache is None else cache.held[rows]
        plan = look(
            canvas,
            rows,
            feed=(torch.minimum(held, start - shift).clamp(min=0), end),
            region=(start, end),
            keep_to=start if cache is not None else None,
            steps=torch.where(count(self.steps, rows) > 0, count(self.steps, rows), block),
            attend=Attend(kind="blocks", block=block),
            shift=shift,
        )
        return judged(plan, self.mask) if self.shadows else plan
