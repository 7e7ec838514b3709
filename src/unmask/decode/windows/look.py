"""A plan from a few numbers per row: what every window shares.

Here, and only here, logits are shifted for models that speak of the next token.
"""

import torch
from torch import Tensor

from unmask.base.attend import NOBODY, Attend
from unmask.base.canvas import Canvas
from unmask.base.step import Plan, State
from unmask.base.vocab import Traits
from unmask.decode.knobs import count


def look(
    canvas: Canvas,
    rows: Tensor,
    *,
    feed: tuple[Tensor, Tensor],
    region: tuple[Tensor, Tensor],
    keep_to: Tensor | None,
    steps: Tensor,
    attend: Attend,
    shift: int,
) -> Plan:
    """The plan that feeds the positions `feed` and asks about those of `region`.

    Args:
        canvas: the text.
        rows: (R,) its rows that take part.
        feed: (start, stop) of the positions fed, (R,) each.
        region: (start, end) of the positions asked about, (R,) each.
        keep_to: (R,) positions before it are final, their keys and values may be kept; None without a cache.
        steps: (R,) steps that the region may take.
        attend: who may see whom.
        shift: 1 where logits are about the token behind the one that was fed; position 0, which has none before it, is
            spoken of by its own row.
    """
    positions = span(*feed)
    fed = positions >= 0
    targets = span(*region)
    there = targets >= 0
    step, stride = canvas.step[rows], canvas.stride[rows]
    tokens, state = canvas.tokens[rows], canvas.state[rows]
    t = ((steps - step).clamp(min=0) / steps).double()
    left = -((step - steps) // stride) - 1  # the last forward may take fewer steps than the others
    return Plan(
        rows=rows,
        positions=positions,
        tokens=tokens.gather(1, positions.clamp(min=0)),
        slots=positions,
        keep=torch.zeros_like(fed) if keep_to is None else fed & (positions < keep_to[:, None]),
        attend=attend,
        targets=targets,
        state=state.gather(1, targets.clamp(min=0)).masked_fill(~there, State.ABSENT),
        standing=tokens.gather(1, targets.clamp(min=0)),
        source=(targets - shift).clamp(min=0) - feed[0][:, None],
        turn=canvas.turn[rows, None].expand_as(targets),
        last=canvas.best[rows].gather(1, targets.clamp(min=0)),
        level=t[:, None].expand_as(targets),
        t=t,
        s=((steps - step - stride).clamp(min=0) / steps).double(),
        steps=steps,
        left=left,
        due=torch.ones_like(rows, dtype=torch.bool),
        took=canvas.took[rows],
        seed=canvas.seed[rows],
        idle=canvas.idle[rows],
        end=region[1],
        among=region[0],
    )


def sizes(block: int | Tensor | None, traits: Traits, rows: Tensor) -> Tensor:
    """(R,) positions of a block: what the window says, or the model's own."""
    said = count(block, rows)
    return torch.where(said > 0, said, traits.unit or 1)


def present(canvas: Canvas, rows: Tensor) -> Tensor:
    """(R,) positions of each row that are there."""
    return (canvas.state[rows] != State.ABSENT).sum(1)


def span(start: Tensor, stop: Tensor) -> Tensor:
    """(R, W) the positions from start to stop of each row, -1 behind the end of shorter ones."""
    width = int((stop - start).max())
    span = start[:, None] + torch.arange(width, device=start.device)
    return span.masked_fill(span >= stop[:, None], NOBODY)
