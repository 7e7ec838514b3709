"""A text with gaps, as a list: what is given, and holes with a range of lengths.

Infilling is [Text, Hole, Text]; a template is any number of both. Lengths are in tokens; this file does not know which.
"""

from dataclasses import dataclass

from unmask.base.errors import BadInput


@dataclass(frozen=True, slots=True)
class Text:
    """Given; stays as it is, to the byte."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """To be written: `low` to `high` tokens, both inclusive.

    Raises:
        BadInput: a length of 0 or less, or `high` below `low`.
    """

    name: str | None = None
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low < 1:
            raise BadInput(f"a hole is at least 1 token long, got {self.low}; drop the hole to write nothing")
        if self.high < self.low:
            raise BadInput(f"a hole's length runs from low to high, got {self.low}-{self.high}; swap them")


Segment = Text | Hole
