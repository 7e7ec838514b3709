"""The whole canvas, in full attention; optionally written block by block (semi-autoregressive).

Source: Nie et al. 2025, LLaDA, arXiv:2502.09992, sec. 2.4 (blocks counted from the end of the prompt, steps shared out
over blocks); Sahoo et al. 2024, MDLM, arXiv:2406.07524.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

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
    pads: ClassVar[bool] = False

    def check(self, traits: Traits) -> None:
        """Raise Unsupported where a model can't be read like this."""
        if traits.sees == "left":
            raise Unsupported("this model reads left to right only; a whole canvas needs one that sees both sides")

    def __call__(self, canvas: Canvas, traits: Traits, cache: Cache | None) -> Plan:
        """The plan of the next forward."""
        rows = (~canvas.done).nonzero()[:, 0]
        start, end, steps = active(canvas, rows, self.block, self.steps)
        return look(
            canvas,
            rows,
            feed=(torch.zeros_like(start), present(canvas, rows)),
            region=(start, end),
            keep_to=None,
            steps=steps,
            attend=Attend.native(traits),
        )


def active(canvas: Canvas, rows: Tensor, block: int | None, steps: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The block that each row is writing: its start, its end, and the steps that it may take, (R,) each.

    Args:
        canvas: the text.
        rows: (R,) its rows that take part.
        block, steps: see `Whole`.
    Raises:
        BadInput: fewer steps than blocks.
    """
    there, origin, sealed = present(canvas, rows), canvas.origin[rows], canvas.sealed[rows]
    if block is None:
        size = there - origin
        return origin, there, size if steps is None else torch.full_like(size, steps)
    index = (sealed - origin) // block
    start = origin + index * block
    end = torch.minimum(start + block, there)
    return start, end, end - start if steps is None else _share(canvas, rows, index, block, steps)


def _share(canvas: Canvas, rows: Tensor, index: Tensor, block: int, steps: int) -> Tensor:
    """Steps of block `index`: the total shared out evenly, earlier blocks take what is over."""
    blocks = -(-(canvas.length[rows] - canvas.origin[rows]) // block)
    if steps < int(blocks.max()):
        raise BadInput(
            f"steps={steps} are fewer than the {int(blocks.max())} blocks of {block} positions: "
            "each block takes one at least; raise steps, or block"
        )
    return steps // blocks + (index < steps % blocks).long()
