"""The whole canvas, in full attention; optionally written block by block (semi-autoregressive).

Source: Nie et al. 2025, LLaDA, arXiv:2502.09992, sec. 2.4 (blocks counted from the end of the prompt, steps shared out
over blocks); Sahoo et al. 2024, MDLM, arXiv:2406.07524.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.base.denoiser import Cache
from unmask.base.errors import BadInput, Unsupported
from unmask.base.step import Plan, State
from unmask.base.vocab import Traits
from unmask.decode.knobs import count
from unmask.decode.windows.look import look, present
from unmask.decode.windows.shadows import can_judge, judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Feed every position, ask about the active block.

    Args:
        block: positions a block, counted from the first open position; None makes the canvas one block.
        steps: forwards for the whole canvas, shared out over its blocks; None allows one per position to be written.
        shadows: whether masks beside the active block judge what is written in it.
        mask: the token of these; set from the vocabulary.
    """

    block: int | Tensor | None = None
    steps: int | Tensor | None = None
    shadows: bool = False
    mask: int | None = None
    caches: ClassVar[bool] = False
    pads: ClassVar[bool] = False
    guessed: ClassVar[str] = "row"
    exact: ClassVar[bool] = True

    def check(self, traits: Traits) -> None:
        """Raise Unsupported where a model can't be read like this."""
        if traits.sees == "left":
            raise Unsupported("this model reads left to right only; a whole canvas needs one that sees both sides")
        if self.shadows:
            can_judge(self.mask, traits)

    def __call__(self, canvas: Canvas, traits: Traits, cache: Cache | None, rows: Tensor | None = None) -> Plan:
        """The plan of the next forward."""
        rows = (~canvas.done).nonzero()[:, 0] if rows is None else rows
        start, end, steps = active(canvas, rows, self.block, self.steps)
        plan = look(
            canvas,
            rows,
            feed=(torch.zeros_like(start), present(canvas, rows)),
            region=(start, end),
            keep_to=None,
            steps=steps,
            attend=Attend.native(traits),
            shift=int(traits.speaks == "next"),
        )
        plan = replace(plan, among=torch.zeros_like(start))
        return judged(plan, self.mask) if self.shadows else plan


def active(
    canvas: Canvas, rows: Tensor, block: int | Tensor | None, steps: int | Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The block that each row is writing: its start, its end, and the steps that it may take, (R,) each.

    Args:
        canvas: the text.
        rows: (R,) its rows that take part.
        block, steps: see `Whole`.
    Raises:
        BadInput: fewer steps than blocks.
    """
    now, size, total = canvas.counts(rows), count(block, rows), count(steps, rows)
    size = torch.where(size > 0, size, canvas.tokens.shape[1])
    index = (now.sealed - now.origin) // size
    start = now.origin + index * size
    end = torch.minimum(start + size, present(canvas, rows))
    least, most = (int(asked) for asked in total.aminmax())
    share = _share(total, -(-(now.length - now.origin) // size), size, index) if most else total
    if least:
        return start, end, share
    places, state = torch.arange(canvas.tokens.shape[1], device=start.device), canvas.state[rows]
    own = (places >= start[:, None]) & (places < end[:, None]) & (state != State.FIXED) & (state != State.ABSENT)
    each = own.sum(1).clamp(min=1)
    return start, end, torch.where(total > 0, share, each) if most else each


def _share(total: Tensor, blocks: Tensor, size: Tensor, index: Tensor) -> Tensor:
    """(R,) steps of block `index` where `total` steps are shared out evenly over `blocks`; earlier ones have more."""
    short = (total > 0) & (total < blocks)
    if bool(short.any()):
        at = int(short.int().argmax())
        raise BadInput(
            f"steps={int(total[at])} are fewer than the {int(blocks[at])} blocks of {int(size[at])} positions: "
            "each block takes one at least; raise steps, or block"
        )
    return total // blocks + (index < total % blocks).long()
