"""Which lengths to try for gaps of unknown length, and which of the tries to keep.

All lengths go through the model in one batch. The one is kept whose text makes what stands behind the gaps most likely:
the log-probability of what was written in a gap says little, as short and repetitive fills are always likely
(measured: `benchmarks/infill_lines.py`). Long ranges are tried on a geometric grid: a token more matters more in a
short gap.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unmask.base.attend import Attend
from unmask.base.canvas import Canvas
from unmask.base.denoiser import Denoiser
from unmask.base.step import State

CANDIDATES = 8
"""How many lengths are tried at most."""
BEHIND = 4
"""Fixed tokens behind each gap that are asked about."""
ROWS = 64
"""Rows that are asked about at once."""


@torch.inference_mode()
def fit(model: Denoiser, canvas: Canvas, ends: Sequence[Sequence[int]]) -> Tensor:
    """How well what was written goes with what stands behind it; one forward.

    Args:
        model: the network.
        canvas: written rows.
        ends: of each row, the positions where its gaps end.
    Returns:
        (B,) float64, mean nats of the first `BEHIND` fixed tokens behind each gap, each masked alone; 0 where none is.
    """
    there, fixed = (canvas.state != State.ABSENT).cpu(), (canvas.state == State.FIXED).cpu()
    asked = [
        (row, at)
        for row, stops in enumerate(ends)
        for at in sorted({at for stop in stops for at in _run(fixed[row].tolist(), stop)})
    ]
    found = torch.zeros(len(ends), dtype=torch.float64)
    if not asked:
        return found
    device = canvas.tokens.device
    mask, shift = model.vocab.mask, int(model.traits.speaks == "next")
    assert mask is not None
    positions = torch.arange(there.shape[1]).masked_fill(~there, -1)
    nats = []
    for part in torch.tensor(asked).split(ROWS):
        row, at = part.T
        each, place = torch.arange(len(part)), positions[row].to(device)
        tokens = canvas.tokens[row.to(device)]
        truth = tokens[each, at]
        tokens[each, at] = mask
        time = 1 / place.shape[1] * torch.ones(len(part), dtype=torch.float64, device=device)  # one is masked
        features = model.read(
            tokens, positions=place, attend=Attend.native(model.traits), t=time if model.traits.clock else None
        )
        logits = model.head(features[each, (at - shift).clamp(min=0)]).double()
        logits[:, mask] = -torch.inf
        nats.append(logits.log_softmax(-1).gather(1, truth[:, None])[:, 0].cpu())
    rows = torch.tensor(asked)[:, 0]
    return found.index_add(0, rows, torch.cat(nats)) / torch.bincount(rows, minlength=len(ends)).clamp(min=1)


def _run(fixed: Sequence[bool], start: int) -> list[int]:
    """The first fixed positions from `start` on, up to the next gap."""
    stop = start
    while stop < min(len(fixed), start + BEHIND) and fixed[stop]:
        stop += 1
    return list(range(start, stop))


def candidates(
    ranges: Sequence[tuple[int, int]], possible: Sequence[Sequence[int]] = (), most: int = CANDIDATES
) -> list[tuple[int, ...]]:
    """Combinations of lengths, one length per range each.

    Ranges move together, from all shortest to all longest: a template whose first gap is long tends to have long ones.

    Args:
        ranges: (low, high) of each gap, low <= high.
        possible: of each gap, those lengths that can be; every length is tried at the nearest of them. Without any it
            is tried as it is.
        most: how many combinations at most.
    """
    if possible:
        ranges = [(sizes[0], sizes[-1]) if sizes else own for sizes, own in zip(possible, ranges, strict=True)]
    if not any(high > low for low, high in ranges):
        return [tuple(low for low, _ in ranges)]
    shares = [i / (most - 1) for i in range(most)]
    grid = [tuple(round(low * (high / low) ** share) for low, high in ranges) for share in shares]
    widest = max(high - low + 1 for low, high in ranges)
    if widest <= most:  # every length of the widest range fits in
        grid = [tuple(low + round((high - low) * i / (widest - 1)) for low, high in ranges) for i in range(widest)]
    if possible:
        grid = [tuple(_nearest(size, sizes) for size, sizes in zip(row, possible, strict=True)) for row in grid]
    return list(dict.fromkeys(grid))


def _nearest(size: int, sizes: Sequence[int]) -> int:
    return min(sizes, key=lambda other: (abs(other - size), other), default=size)
