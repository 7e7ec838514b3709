"""Other tokens beside the text in the same forward: what it might be a step later, or masks where it is written.

They stand in slots of their own behind what is fed, as many places behind those that they stand for as a multiple of
`LANES`, so that sums of attention take the same numbers in the same lanes as if they stood there.
"""

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.base.attend import NOBODY, Shadows
from unmask.base.errors import Unsupported
from unmask.base.step import Plan, State
from unmask.base.vocab import Traits
from unmask.nn.cache import LANES

Kind = Literal["texts", "masks", "alone"]
"""What shadows are: other texts for the same places, each of which sees itself instead of them; masks that see each
other, and all of the text but the place that they stand for; or masks each of which sees none of the others."""


def spare(num_texts: int, width: int) -> int:
    """Slots behind the last position of a row that so many texts of so many places may take."""
    return LANES + num_texts * _even(width)


def beside(plan: Plan, start: Tensor, stop: Tensor, tokens: Tensor, *, kind: Kind) -> tuple[Plan, Tensor]:
    """A plan that feeds shadows too.

    Args:
        plan: what is fed otherwise, a run of positions from each row's first on.
        start, stop: (R,) places that shadows stand for.
        tokens: (R, M, N) of M texts, one but for kind "texts"; negative ones are not fed.
        kind: see `Kind`.
    Returns:
        The plan, and which of the fed slots (R, M) stands for `start` in each text.
    """
    count, device = tokens.shape[1], tokens.device
    wide = _evened((stop - start).clamp(min=1))
    begun = plan.positions[:, 0]
    fed = plan.positions.amax(1) + 1
    first = start + _evened(fed - start)
    every = torch.arange(int((count * wide).max()), device=device)
    text, at = every // wide[:, None], every % wide[:, None]
    there = (text < count) & (at < (stop - start)[:, None])
    token = tokens.flatten(1).gather(1, (text.clamp(max=count - 1) * tokens.shape[2] + at).where(there, 0))
    there &= token >= 0
    place = (start[:, None] + at).where(there, NOBODY)
    if kind == "texts":
        lanes, hidden = text, (start[:, None].expand_as(place), stop[:, None].expand_as(place))
    else:
        lanes = torch.zeros_like(text) if kind == "masks" else every.expand_as(text)
        hidden = (place, place + 1)
    shadows = Shadows(first, place, lanes, *hidden)
    width = max(plan.positions.shape[1], int((first - begun).max()) + len(every))
    slots = begun[:, None] + torch.arange(width, device=device)
    which = slots - first[:, None]
    inside = (which >= 0) & (which < len(every))
    which = which.clamp(0, len(every) - 1)
    more = (0, width - plan.positions.shape[1])
    positions = torch.where(inside, place.gather(1, which), F.pad(plan.positions, more, value=NOBODY))
    plan = replace(
        plan,
        positions=positions,
        tokens=torch.where(inside, token.gather(1, which), F.pad(plan.tokens, more)).where(positions >= 0, 0),
        slots=slots.where(positions >= 0, NOBODY),
        keep=F.pad(plan.keep, more),
        attend=replace(plan.attend, shadows=shadows),
    )
    texts = torch.arange(count, device=device)
    return plan, (first - begun)[:, None] + texts * wide[:, None]


def can_judge(mask: int | None, traits: Traits) -> None:
    """Raise Unsupported for a model in which no mask speaks for its place."""
    if mask is None or traits.speaks != "here":
        raise Unsupported(
            f"masks beside the text judge it, and this model speaks {traits.speaks!r} and has "
            f"{'no' if mask is None else 'a'} mask token; use a policy other than wino"
        )


def judged(plan: Plan, mask: int | None) -> Plan:
    """A plan in which masks beside the targets speak for those that are written."""
    assert mask is not None
    start = plan.targets[:, 0]
    masks = torch.full_like(plan.targets, mask)[:, None]
    wide, first = beside(plan, start, plan.targets.amax(1) + 1, masks, kind="masks")
    return replace(
        wide, source=torch.where(plan.state == State.DONE, first + plan.targets - start[:, None], plan.source)
    )


def _even(size: int) -> int:
    return -(-size // LANES) * LANES


def _evened(size: Tensor) -> Tensor:
    return -(-size // LANES) * LANES
