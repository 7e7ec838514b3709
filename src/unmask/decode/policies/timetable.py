"""How many open targets a step has to fill so that the region's budget of steps is kept: a timetable a name.

All follow from what is left (open targets, steps), so nothing is remembered between steps.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from unmask.base.step import Plan, Proposal

Timetable = Literal["even", "full", "linear"]

EPS = 1e-3
"""Where the linear timetable's time ends, as published."""


def even(offer: Proposal, plan: Plan) -> Tensor:
    """(R,) with n open positions and k steps left, ceil(n / k); 0 where no step is due.

    These are the published shares, n // k and one more in the first n % k steps.

    Source: Nie et al. 2025, LLaDA, arXiv:2502.09992, generate.py.
    """
    return torch.where(plan.due, -(-offer.is_open.sum(1) // _steps(plan)), 0)


def full(offer: Proposal, plan: Plan) -> Tensor:
    """(R,) the share of a region all of whose positions were open at the start, whatever was given or came early.

    A block that begins with the end of the prompt is done in fewer steps than the others.

    Source: Cheng et al. 2025, SDAR, arXiv:2510.06303, generate.py; LLaDA2.0: Bie et al. 2025, arXiv:2512.15745, ditto.
    """
    size, left = (plan.targets >= 0).sum(1), (plan.left + 1).clamp(min=0)
    steps = torch.where(left > 0, (left / plan.t).round().long(), 1)  # of the whole region: t is the part that is left
    due = size // steps * left + (left - steps + size % steps).clamp(min=0)
    return torch.where(plan.due, torch.maximum(-(-due // _steps(plan)), even(offer, plan)), 0)


def linear(offer: Proposal, plan: Plan) -> Tensor:
    """(R,) floor(n (1 - s / t)) for a time that falls in equal steps from 1 to 0.001; the last step takes the rest.

    A step may take nothing.

    Source: Ye et al. 2025, Dream, arXiv:2508.15487, generation_utils.py. There it is computed in float32; the shares
    are the same for all up to 128 steps and 64 positions, and for the larger ones that were tried.
    """
    t, s = (EPS + (1 - EPS) * time for time in (plan.t, plan.s))
    num_open = offer.is_open.sum(1)
    return torch.where(plan.left > 0, (num_open * (1 - s / t)).long(), num_open)


TIMETABLES: dict[str, Callable[[Proposal, Plan], Tensor]] = {"even": even, "full": full, "linear": linear}


def _steps(plan: Plan) -> Tensor:
    return (plan.left + 1).clamp(min=1)
