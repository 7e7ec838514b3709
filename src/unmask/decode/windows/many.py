"""Several blocks at the same time: a block is begun before the one before it is written.

All blocks that are begun share a forward, each reading those before it as they stand. Those in front are sealed, and
their keys and values kept, as by the window `block`. Policies see each block by itself. A block whose predecessor is
not nearly full yet only takes what is sure; the first one, and those behind nearly full ones, take something each step.

Source: Wang et al. 2025, D2F, arXiv:2508.09192, sec. 3.3 and algorithm 2 (its thresholds: a block is added when the
last one is filled to a tenth, and decodes fully behind one that is filled to 95%). There the prompt is one block that
sees itself; here blocks are counted from position 0, as the model's attention counts them.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.base.denoiser import Cache
from unmask.base.step import Plan, State
from unmask.base.vocab import Traits
from unmask.decode.knobs import Knob, column, count
from unmask.decode.parts import Parts
from unmask.decode.windows.block import Block
from unmask.decode.windows.look import look, present, sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Many:
    """Feed what is not kept yet and all blocks that are begun, ask about these.

    Args:
        block: positions a block, counted from position 0; None takes the model's own.
        steps: forwards for each block from when it is the first; None allows one per position.
        blocks: how many are written at the same time at most.
        begin: share of a block that is written before the next one is begun.
        press: share of a block that is written before the next one has to take something each step.
        traits: of the model; set from it.
    """

    block: int | Tensor | None = None
    steps: int | Tensor | None = None
    blocks: int | Tensor = 4
    begin: Knob = 0.1
    press: Knob = 0.95
    traits: Traits = field(default_factory=Traits)
    caches: ClassVar[bool] = True
    pads: ClassVar[bool] = True
    exact: ClassVar[bool] = True

    def check(self, traits: Traits) -> None:
        """Raise Unsupported where a model can't be read like this."""
        Block(block=self.block).check(traits)

    def __call__(self, canvas: Canvas, traits: Traits, cache: Cache | None, rows: Tensor | None = None) -> Plan:
        """The plan of the next forward."""
        rows = (~canvas.done).nonzero()[:, 0] if rows is None else rows
        block, there = sizes(self.block, traits, rows), present(canvas, rows)
        start = canvas.sealed[rows] // block * block
        behind = start[:, None] + torch.arange(int(count(self.blocks, rows).max()), device=rows.device) * block[:, None]
        full = self._filled(canvas, rows, behind, block) >= column(self.begin, rows)
        begun = full.int().cumprod(1).sum(1).clamp(max=behind.shape[1] - 1) + 1
        begun = torch.minimum(begun, count(self.blocks, rows))
        shift = int(traits.speaks == "next")  # the row about a block's first token is the one before it
        held = torch.zeros_like(start) if cache is None else cache.held[rows]
        end = torch.minimum(start + begun * block, there)
        plan = look(
            canvas,
            rows,
            feed=(torch.minimum(held, start - shift).clamp(min=0), end),
            region=(start, end),
            keep_to=start if cache is not None else None,
            steps=self._steps(rows, block),
            attend=Attend(kind="blocks", block=block),
            shift=shift,
        )
        return replace(plan, end=torch.minimum(start + block, there))

    def apart(self, plan: Plan) -> Parts:
        """Each block by itself."""
        block = sizes(self.block, self.traits, plan.rows)
        size, width = int(block.max()), plan.targets.shape[1]
        num = -(-width // int(block.min()))
        first = torch.arange(num, device=block.device) * block[:, None]
        columns = first[:, :, None] + torch.arange(size, device=block.device)
        inside = (torch.arange(size, device=block.device) < block[:, None, None]) & (columns < width)
        at = columns.clamp(max=width - 1).flatten(1)
        inside &= (plan.targets.gather(1, at) >= 0).view(columns.shape)
        written = (plan.state.gather(1, at) != State.OPEN).view(columns.shape) & inside
        share = written.sum(2) / inside.sum(2).clamp(min=1)
        pressed = share >= column(self.press, plan.rows)
        due = torch.cat([plan.due[:, None], pressed[:, :-1]], dim=1)
        stride = ((plan.t - plan.s) * plan.steps).round().long().clamp(min=1)
        fresh = {  # a block that is not the first has all of its budget
            "t": torch.ones_like(plan.t),
            "s": ((plan.steps - stride).clamp(min=0) / plan.steps).double(),
            "left": -(-plan.steps // stride) - 1,
        }
        every = {name: _first(getattr(plan, name), behind, num) for name, behind in fresh.items()}
        return Parts(columns=columns.masked_fill(~inside, -1), due=due, **every)

    def _steps(self, rows: Tensor, block: Tensor) -> Tensor:
        steps = count(self.steps, rows)
        return torch.where(steps > 0, steps, block)

    def _filled(self, canvas: Canvas, rows: Tensor, start: Tensor, block: Tensor) -> Tensor:
        """(R, G) share of each block that is not open."""
        places = torch.arange(canvas.state.shape[1] + 1, device=rows.device)
        is_open = torch.nn.functional.pad(canvas.open[rows].long().cumsum(1), (1, 0))
        ends = [at.clamp(max=len(places) - 1) for at in (start, start + block[:, None])]
        num_open = is_open.gather(1, ends[1]) - is_open.gather(1, ends[0])
        return 1 - num_open / (ends[1] - ends[0]).clamp(min=1)


def _first(own: Tensor, behind: Tensor, num: int) -> Tensor:
    """(R, num) of the first block `own` (R,), of the others `behind` (R,)."""
    return torch.cat([own[:, None], behind[:, None].expand(-1, num - 1)], dim=1)
