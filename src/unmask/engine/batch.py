"""From the rows that want to go on to the plan of one forward: whose turn it is, and how much of a prompt is read.

It knows plans, and nothing of requests, pages or the network.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unmask.base.attend import ALL, NOBODY
from unmask.base.denoiser import Cache
from unmask.base.step import Plan, State


def share_out(widths: Sequence[int], unread: Sequence[int], units: Sequence[int], most: int) -> list[int]:
    """How many of its positions each row feeds, in the order of arrival.

    A row feeds all of them, or, where it has text to read first, whole units of that, or nothing: it waits. The first
    row never waits.

    Args:
        widths: positions that each row wants to feed.
        unread: how many of these are text that it has to read first; 0 where that can't be done in parts.
        units: positions that have to be read together (a block).
        most: positions in all.
    """
    shares: list[int] = []
    left = most
    for width, ahead, unit in zip(widths, unread, units, strict=True):
        share = width if width <= left else min(left, ahead) // unit * unit
        if not shares and not share:  # nothing fits: the oldest row goes alone
            share = min(ahead, unit) or width
        shares.append(share)
        left -= min(share, left)
    return shares


def shared(plan: Plan, widths: list[int], cache: Cache | None, most: int) -> list[int]:
    """How many of its positions (widths) each row of a plan feeds in a forward of `most`; see `share_out`."""
    held = 0 if cache is None else cache.held[plan.rows, None]  # what is fed once more is no text to be read
    text = (plan.keep & (plan.positions >= held) & (plan.positions < plan.targets[:, :1])).sum(1).tolist()
    blocks = block_of(plan)
    unread = [count if block else 0 for count, block in zip(text, blocks, strict=True)]
    return share_out(widths, unread, [block or 1 for block in blocks], most)


def reach(plan: Plan, widths: list[int], shares: list[int]) -> list[int]:
    """The slot behind the last one that each row feeds, where it feeds so many (shares) of its positions (widths)."""
    ends: list[int] = (plan.slots.amax(1) + 1).tolist()
    if shares is widths:
        return ends
    starts = plan.positions[:, 0].tolist()
    every = zip(starts, ends, widths, shares, strict=True)
    return [start + share if share < width else end for start, end, width, share in every]


def cut(plan: Plan, shares: Tensor) -> Plan:
    """The plan in which rows feed only their first positions, (R,); those that don't feed all ask about nothing."""
    waits = (shares < (plan.positions >= 0).sum(1))[:, None]
    fed = (torch.arange(plan.positions.shape[1], device=shares.device) < shares[:, None]) | ~waits
    positions = plan.positions.masked_fill(~fed, NOBODY)
    width = int((positions >= 0).any(0).nonzero()[-1]) + 1
    return replace(
        plan,
        positions=positions[:, :width],
        tokens=plan.tokens[:, :width],
        slots=plan.slots.masked_fill(~fed, NOBODY)[:, :width],
        keep=(plan.keep & fed)[:, :width],
        targets=plan.targets.masked_fill(waits, NOBODY),
        state=plan.state.masked_fill(waits, State.ABSENT),
    )


def block_of(plan: Plan) -> list[int]:
    """Positions of the blocks under which each row is read; 0 where what is kept is not exact, or not blockwise."""
    kind, rows = plan.attend.kind, len(plan.rows)
    if kind in ("causal", "canvas"):  # what is kept of a canvas' row is the causal context before it
        return [1] * rows
    if kind != "blocks":
        return [0] * rows
    block = torch.as_tensor(plan.attend.block)
    found: list[int] = torch.where(block < ALL, block, 0).expand(rows).tolist()
    return found
