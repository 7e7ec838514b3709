"""One canvas after the other behind a causal context, with an exact cache.

A canvas is a block that sees all that stands before it and all of itself, and that nothing before it sees. Once it is
written it is read again as context, and its keys and values are kept; that reading rides in the first forward of the
next canvas, and so does the reading of the prompt. Canvases are counted from the end of the prompt.

Source: DiffusionGemma, Google 2026, `DiffusionGemmaGenerationMixin.generate` of transformers 5.24 (which reads the
context in a forward of its own).
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvases:
    """Feed what is not kept yet and the active canvas, ask about the active canvas.

    Args:
        block: positions a canvas; None takes the model's own.
        steps: forwards for each canvas; None allows one per position.
    """

    block: int | Tensor | None = None
    steps: int | Tensor | None = None
    caches: ClassVar[bool] = True
    pads: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def check(self, traits: Traits) -> None:
        """Raise Unsupported where a model can't be read like this."""
        if traits.sees != "context-then-canvas" or traits.speaks != "here":
            raise Unsupported(
                f"this model sees {traits.sees!r} and speaks {traits.speaks!r}; "
                "a canvas behind a causal context needs one that sees 'context-then-canvas' and speaks 'here'"
            )

    def __call__(self, canvas: Canvas, traits: Traits, cache: Cache | None, rows: Tensor | None = None) -> Plan:
        """The plan of the next forward."""
        rows = (~canvas.done).nonzero()[:, 0] if rows is None else rows
        block = sizes(self.block, traits, rows)
        origin = canvas.origin[rows]
        start = origin + (canvas.sealed[rows] - origin) // block * block
        end = torch.minimum(start + block, present(canvas, rows))
        held = torch.zeros_like(start) if cache is None else cache.held[rows]
        return look(
            canvas,
            rows,
            feed=(torch.minimum(held, start), end),
            region=(start, end),
            keep_to=start if cache is not None else None,
            steps=torch.where(count(self.steps, rows) > 0, count(self.steps, rows), block),
            attend=Attend(kind="canvas", start=start),
            shift=0,
        )
