"""The whole canvas, in full attention; optionally written block by block (semi-autoregressive).

Source: Nie et al. 2025, LLaDA, arXiv:2502.09992, sec. 2.4 (blocks counted from the end of the prompt, steps shared out
over blocks); Sahoo et al. 2024, MDLM, arXiv:2406.07524.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.base.denoiser import Cache
from unmask.base.errors import BadInput, Unsupported
from unmask.base.step import Plan
from unmask.base.vocab import Traits
from unmask.decode.windows.look import look, present


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Feed every position, ask about the active block.

    Args:
        block: positions a block, counted from the first open position; None makes the canvas one block.
        steps: forwards for the whole canvas, shared out over its blocks; None allows one per position.
    """

    block: int | None = None
    steps: int | None = None
    caches: ClassVar[bool] = False

    def check(self, traits: Traits) -> None:
        """Raise Unsupported where a model can't be read like this."""
        if traits.sees == "left":
            raise Unsupported("this model reads left to right only; a whole canvas needs one that sees both sides")

    def __call__(self, canvas: Canvas, traits: Traits, cache: Cache | None) -> Plan:
        """The plan of the next forward."""
        rows = (~canvas.done).nonzero()[:, 0]
        there, origin, sealed = present(canvas, rows), canvas.origin[rows], canvas.sealed[rows]
        size = there - origin
        if self.block is None:
            start, end, steps = origin, there, size if self.steps is None else torch.full_like(size, self.steps)
        else:
            index = (sealed - origin) // self.block
            start = origin + index * self.block
            end = torch.minimum(start + self.block, there)
            steps = end - start if self.steps is None else self._share(canvas, rows, index)
        return look(
            canvas,
            rows,
            feed=(torch.zeros_like(start), there),
            region=(start, end),
            keep_to=None,
            steps=steps,
            attend=Attend.native(traits),
        )

    def _share(self, canvas: Canvas, rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Steps of block `index`: the total shared out evenly, earlier blocks take what is over."""
        assert self.block is not None
        assert self.steps is not None
        blocks = -(-(canvas.length[rows] - canvas.origin[rows]) // self.block)
        if self.steps < int(blocks.max()):
            raise BadInput(
                f"steps={self.steps} are fewer than the {int(blocks.max())} blocks of {self.block} positions: "
                "each block takes one at least; raise steps, or block"
            )
        return self.steps // blocks + (index < self.steps % blocks).long()
