"""The active block and what is near it, over keys and values of a full forward: a cache that is not exact.

In a bidirectional model every key and value changes with every token that is written, so those that are kept are stale
from the next step on. They are renewed by a full forward at the start of each block, whose own logits are used too. A
small block means more full forwards and less staleness. Nothing kept is ever shared between rows.

More of them than were published can be asked for: after a number of forwards (`refresh`; with 1 every forward is full),
or once what is kept has moved (`drift`, see `unmask.decode.staleness`). Both are ours.

The release makes one more forward for a block that its full forward has completed; here the next block follows at once,
and all else (what is fed, what comes out) is as released.

Source: Wu et al. 2025, Fast-dLLM, arXiv:2505.22618, sec. 3.2 and fig. 2 (prefix cache, dual cache).
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.base.denoiser import Cache
from unmask.base.errors import Unsupported
from unmask.base.step import Plan
from unmask.base.vocab import Traits
from unmask.decode.knobs import column, count
from unmask.decode.windows.look import look, present
from unmask.decode.windows.whole import active


@dataclass(frozen=True, slots=True, kw_only=True)
class Vicinity:
    """Feed every position at the start of a block and less in its later steps, ask about the active block.

    Args:
        block: positions a block, counted from the first open position; None makes the canvas one block.
        steps: forwards for the whole canvas, shared out over its blocks; None allows one per position to be written.
        cache: what is taken from the full forward in the later steps of a block: "prefix" what lies before the block
            (the block and all behind it are read anew), "dual" what lies outside it (the block alone is).
        refresh: a block's forwards from one full one to the next; None leaves it at one, at the start.
        drift: 1 - cosine, above 0; once what the first layer makes of kept positions has turned further than this, on
            average, since the last full forward, the next one is full. None never looks.
    """

    block: int | Tensor | None = None
    steps: int | Tensor | None = None
    cache: Literal["prefix", "dual"] = "prefix"
    refresh: int | Tensor | None = None
    drift: float | Tensor | None = None
    caches: ClassVar[bool] = True
    pads: ClassVar[bool] = False
    exact: ClassVar[bool] = False

    def check(self, traits: Traits) -> None:
        """Raise Unsupported where a model can't be read like this."""
        if traits.sees != "all":
            raise Unsupported(
                "this window keeps keys and values of a model that sees both sides, and this one does not; "
                "the windows block and next have an exact cache for it"
            )

    def __call__(self, canvas: Canvas, traits: Traits, cache: Cache | None, rows: Tensor | None = None) -> Plan:
        """The plan of the next forward."""
        rows = (~canvas.done).nonzero()[:, 0] if rows is None else rows
        there = present(canvas, rows)
        start, end, steps = active(canvas, rows, self.block, self.steps)
        fresh = canvas.step[rows] == 0  # a block's first step reads everything, and keeps it anew
        often, far = count(self.refresh, rows), column(0.0 if self.drift is None else self.drift, rows)[:, 0]
        fresh |= (often > 0) & (canvas.age[rows] >= often)
        fresh |= (far > 0) & (canvas.moved[rows] > far)
        fresh |= cache is None
        shift = int(traits.speaks == "next")  # the row about a block's first token is the one before it
        kept, until = (start, there) if self.cache == "prefix" else (there, end)
        plan = look(
            canvas,
            rows,
            feed=(torch.where(fresh, 0, start - shift).clamp(min=0), torch.where(fresh, there, until)),
            region=(start, end),
            keep_to=torch.where(fresh, kept, 0) if cache is not None else None,
            steps=steps,
            attend=Attend.native(traits),
            shift=shift,
        )
        return replace(plan, among=plan.positions[:, 0])
