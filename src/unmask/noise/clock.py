"""From the time that a decoder counts in to the total noise that a network reads: the one place that does it.

Which schedule a network was trained under is one of its traits. It does not know networks.
"""

import math
from collections.abc import Callable

from torch import Tensor

from unmask.base.errors import BadInput, UnknownName
from unmask.base.vocab import Traits
from unmask.noise.schedules import TABLE, Cosine, Geometric, Linear, LogLinear, Schedule

BETWEEN: dict[str, Callable[[float, float], Schedule]] = {
    "log-linear": lambda least, most: LogLinear(eps=math.exp(-most)),
    "linear": lambda least, most: Linear(sigma_min=least, sigma_max=most),
    "cosine": lambda least, most: Cosine(eps=math.exp(-most)),
    "geometric": lambda least, most: Geometric(sigma_min=least, sigma_max=most),
}
"""Schedules by name, from their total noise at t = 0 and at t = 1."""

STARTS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "log-linear": ("at 0", lambda least: least == 0),
    "linear": ("at 0 or above", lambda least: least >= 0),
    "cosine": ("at 0", lambda least: least == 0),
    "geometric": ("above 0", lambda least: least > 0),
}
"""Where each may start."""


def schedule(traits: Traits) -> Schedule:
    """The schedule that a network was trained under.

    Raises:
        UnknownName: no such schedule.
        BadInput: it can't run between these amounts of noise.
    """
    if traits.schedule not in TABLE:
        raise UnknownName("schedule", traits.schedule, TABLE)
    if not traits.sigmas:
        return TABLE[traits.schedule]
    least, most = traits.sigmas if len(traits.sigmas) == 2 else (math.nan, math.nan)
    starts, fits = STARTS[traits.schedule]
    if not (fits(least) and least < most < math.inf):
        raise BadInput(
            f"total noise of the schedule {traits.schedule!r} starts {starts} and ends at a finite amount; "
            f"it can't run between the sigmas {traits.sigmas}"
        )
    return BETWEEN[traits.schedule](least, most)


def sigma(traits: Traits, t: Tensor) -> Tensor:
    """Total noise, -log alpha, at times t in [0, 1] of any shape; float64."""
    return -schedule(traits).alpha(t.double()).log()
