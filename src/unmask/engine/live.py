"""A request inside an engine, from when it was taken in until it is told of for the last time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unmask.base.canvas import Canvas
from unmask.base.denoiser import Cache, Denoiser
from unmask.base.step import Plan
from unmask.constrain.holes import Holes
from unmask.decode import resize
from unmask.decode.growth.row import Growing, Resize
from unmask.decode.propose import Sampling
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
        growing: what is known of its length, where that is found while it is written.
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
    growing: Growing | None = None

    @property
    def caches(self) -> bool:
        """Whether it keeps keys and values."""
        return self.request.decoder.window.caches

    def resize(self, found: Resize, canvas: Canvas, holes: Holes, sampling: Sampling) -> int:
        """Take its new positions on the engine's canvas; how many are its own now."""
        assert self.growing is not None
        assert self.reading is not None
        before = len(self.growing.layout.tokens)
        resize.carry_out(found, canvas, self.row, self.growing, self.request.decoder, self.reading, holes)
        resize.allow(sampling, self.row, self.growing)
        now = len(self.growing.layout.tokens)
        if self.chase is not None and self.chase.seen is not None:  # what is new was not written backwards
            self.chase.seen = self.chase.seen[0] + now - before, self.chase.seen[1]
        return now


def growing(lives: Sequence[Live]) -> dict[int, Growing]:
    """Those that may grow, by row."""
    return {live.row: live.growing for live in lives if live.growing is not None}


def by_crowd(lives: Sequence[Live]) -> list[tuple[Crowd, list[int]]]:
    """The crowds that are there, and which of these rows belong to each."""
    found: dict[int, tuple[Crowd, list[int]]] = {}
    for i, live in enumerate(lives):
        found.setdefault(id(live.crowd), (live.crowd, []))[1].append(i)
    return list(found.values())


def plans(lives: Sequence[Live], canvas: Canvas, model: Denoiser, cache: Cache | None) -> Plan:
    """What each of these would look at next, in their order."""
    crowds = by_crowd(lives)
    found = [crowd.plan(canvas, model.traits, cache, [lives[i].row for i in index]) for crowd, index in crowds]
    joined = Plan.join(found)
    order = torch.tensor([i for _, index in crowds for i in index], device=joined.rows.device)
    return joined if bool((order.diff() > 0).all()) else joined.take(order.argsort())
