"""A request inside an engine, from when it was taken in until it is told of for the last time."""

from collections.abc import Sequence
from dataclasses import dataclass

from unmask.base.canvas import Canvas
from unmask.decode.reading import Reading
from unmask.engine.crowd import Crowd
from unmask.engine.pace import Chase
from unmask.engine.request import Request


@dataclass(slots=True, eq=False)
class Live:
    """A request inside.

    Attributes:
        canvas: its own row, until it has a place on the engine's.
        told: position up to which committed tokens were told.
        reused: positions that others had read when it came in.
        chase: of its target of seconds, if it has one.
    """

    id: int
    request: Request
    canvas: Canvas
    crowd: Crowd
    row: int = -1
    reading: Reading | None = None
    told: int = 0
    reused: int | None = None
    chase: Chase | None = None

    @property
    def caches(self) -> bool:
        """Whether it keeps keys and values."""
        return self.request.decoder.window.caches


def by_crowd(lives: Sequence[Live]) -> list[tuple[Crowd, list[int]]]:
    """The crowds that are there, and which of these rows belong to each."""
    found: dict[int, tuple[Crowd, list[int]]] = {}
    for i, live in enumerate(lives):
        found.setdefault(id(live.crowd), (live.crowd, []))[1].append(i)
    return list(found.values())
