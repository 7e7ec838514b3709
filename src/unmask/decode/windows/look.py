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
    positions, targets = span(*feed), span(*region)
    fed, there = positions >= 0, targets >= 0
    now, cells = canvas.counts(rows), canvas.cells(rows, targets.clamp(min=0))
    more = steps - now.step
    t = (more.clamp(min=0) / steps).double()
    return Plan(
        rows=rows,
        positions=positions,
        tokens=canvas.tokens.take(canvas.cells(rows, positions.clamp(min=0))),
        slots=positions,
        keep=torch.zeros_like(fed) if keep_to is None else fed & (positions < keep_to[:, None]),
        attend=attend,
        targets=targets,
        state=canvas.state.take(cells).masked_fill(~there, State.ABSENT),
        standing=canvas.tokens.take(cells),
        source=(targets - shift).clamp(min=0) - feed[0][:, None],
        turn=now.turn[:, None].expand_as(targets),
        last=canvas.best.take(cells),
        level=t[:, None].expand_as(targets),
        t=t,
        s=((more - now.stride).clamp(min=0) / steps).double(),
        steps=steps,
        left=(more - 1) // now.stride,  # the last forward may take fewer steps than the others
        due=torch.ones_like(rows, dtype=torch.bool),
        took=now.took,
        seed=now.seed,
        idle=now.idle,
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
    least, most = (int(width) for width in (stop - start).aminmax())
    span = start[:, None] + torch.arange(most, device=start.device)
    return span if least == most else span.masked_fill(span >= stop[:, None], NOBODY)
