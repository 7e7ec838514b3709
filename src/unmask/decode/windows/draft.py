"""Tokens drafted at once and then verified from left to right by the same weights, in turns.

A draft is read as a canvas of masks behind a causal context; it stays in open positions, where it is no text yet. The
forward after it reads the draft as text, left to right, and says of each token what token-by-token writing would have
put there. Keys and values are those of causal reading, and exact: the draft that is found right has been read already.

Networks that speak of the next token say so in the rows of the draft itself. Those that speak of the masks they are
given get shadows: a mask for every drafted token, which sees what is before it.

Source: Nemotron-Labs-Diffusion, NVIDIA 2026, arXiv:2607.05722, and Fast-dVLM, arXiv:2604.06832 (linear
self-speculation: two forwards a draft, the longest match and one token more are kept).
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.base.denoiser import Cache
from unmask.base.errors import Unsupported
from unmask.base.step import Plan, State
from unmask.base.vocab import Traits
from unmask.decode.knobs import count
from unmask.decode.windows.look import look
from unmask.decode.windows.next import Next
from unmask.decode.windows.shadows import beside

WIDTH, WIDEST = 4, 16
"""Tokens of a draft where nobody says how many, and the most that somebody may say later."""
NONE = -1
"""The width of a draft that is not made: a token a forward, as without drafts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Feed what is not kept yet and masks, ask about these; then feed what was drafted, ask about that and one more.

    Args:
        block: tokens of a draft; None leaves that to whoever knows what a forward costs, and is `WIDTH` otherwise.
        mask: what a position that is not drafted holds; set from the vocabulary.
    """

    block: int | Tensor | None = None
    mask: int | None = None
    caches: ClassVar[bool] = True
    pads: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    shadows: ClassVar[bool] = True

    def check(self, traits: Traits) -> None:
        """Raise Unsupported where a model can't be read like this."""
        Next().check(traits)
        if self.mask is None:
            raise Unsupported("a draft is read as masks, and this model has no mask token; use decoder 'ar'")

    def __call__(self, canvas: Canvas, traits: Traits, cache: Cache | None, rows: Tensor | None = None) -> Plan:
        """The plan of the next forward."""
        rows = (~canvas.done).nonzero()[:, 0] if rows is None else rows
        state, at = canvas.state[rows], canvas.sealed[rows]
        shift = int(traits.speaks == "next")
        ahead = torch.arange(state.shape[1], device=rows.device) >= at[:, None]
        run = ((state == State.OPEN) | ~ahead).int().cumprod(1).bool() & ahead  # open without a gap
        drafted = (run & (canvas.tokens[rows] != self.mask)).sum(1)
        checks = drafted > 0
        said, room = count(self.block, rows), run.sum(1)
        said = said.masked_fill(at < shift, NONE)  # a first token is spoken of by its own mask, which no draft replaces
        size = torch.where(said == 0, WIDTH, said.clamp(min=1))
        last = checks | (said == NONE)
        end = at + torch.minimum(torch.where(checks, drafted + 1, size), room)
        held = torch.zeros_like(at) if cache is None else cache.held[rows]
        stop = torch.where(checks, at + torch.minimum(drafted, end - at - shift), end)
        plan = look(
            canvas,
            rows,
            feed=(torch.minimum(held, at - shift).clamp(min=0), stop),
            region=(at, end),
            keep_to=torch.where(checks, stop, at) if cache is not None else None,
            steps=canvas.step[rows] + torch.where(last, 1, 2),
            attend=Attend(kind="canvas", start=torch.where(checks, end, at)),
            shift=shift,
        )
        given = (state == State.FIXED).long().cumsum(1)  # noise is counted as token-by-token writing counts it
        turn = plan.targets - given.gather(1, plan.targets.clamp(min=0))
        hot = torch.ones_like(plan.level)  # token by token, each has a step of its own
        plan = replace(plan, turn=turn, level=hot, end=torch.where(last, at + 1, end))
        return plan if shift else self._with_masks(plan, at, end, checks)

    def _with_masks(self, plan: Plan, at: Tensor, end: Tensor, checks: Tensor) -> Plan:
        """A mask beside each position that is checked; what is drafted speaks for itself."""
        assert self.mask is not None
        stop = torch.where(checks, end, at)
        if not bool(checks.any()):
            return plan
        masks = torch.full((len(at), 1, int((stop - at).max())), self.mask, device=at.device)
        plan, first = beside(plan, at, stop, masks, kind="alone")
        source = first + (plan.targets - at[:, None])
        return replace(plan, source=torch.where(checks[:, None], source, plan.source))
