"""How much effort goes into a text: which numbers of a decoder that moves, and how far, as one table.

"medium" is what a decoder has by itself, whoever chose it; the others are told by comparison with it, so that the table
holds for models whose own thresholds differ. It does not know decoders; `unmask.decode.decoder` asks it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Effort = Literal["instant", "low", "medium", "high"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
"""From the least to the most."""

STRIDE = "stride"
"""The number of every decoder with a budget of steps: how many of them one forward takes."""


@dataclass(frozen=True, slots=True)
class Number:
    """What effort does to one number: it is multiplied, a probability by its odds.

    Args:
        by: what it is multiplied by, in the order of `EFFORTS`.
        odds: whether p / (1 - p) is multiplied instead of p.
        least: of whole numbers, which are rounded up, the smallest that makes sense; None for others.
    """

    by: tuple[float, float, float, float]
    odds: bool = False
    least: int | None = None


DIAL: dict[str, Number] = {
    STRIDE: Number((4, 2, 1, 1), least=1),
    "threshold": Number((1 / 9, 1 / 3, 1, 3), odds=True),
    "factor": Number((4, 2, 1, 1 / 2)),
    "bound": Number((16, 4, 1, 1 / 4)),
    "settle": Number((16, 4, 1, 1 / 4)),
    "rounds": Number((1 / 4, 1 / 2, 1, 1), least=0),
}
"""The numbers that it moves, by the name they have as options of windows and policies; all others stay."""


def moved(name: str, value: float, start: Effort, end: Effort) -> float:
    """What a number that is `value` at one effort is at another."""
    number = DIAL[name]
    by = number.by[EFFORTS.index(end)] / number.by[EFFORTS.index(start)]
    if by == 1:
        return value  # to the bit
    if number.odds:
        return by * value / (1 - value + by * value)
    return by * value if number.least is None else max(number.least, math.ceil(by * value))


@dataclass(frozen=True, slots=True)
class Eased:
    """What became of a target of seconds.

    Args:
        target_s: in how many it was to be done.
        took_s: in how many it was.
        steps: steps that it took with less effort than was asked for.
        effort: the least that was used.
        numbers: those that were moved, as they were then; none where it was never eased.
    """

    target_s: float
    took_s: float
    steps: int
    effort: Effort
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether it was done in time."""
        return self.took_s <= self.target_s
