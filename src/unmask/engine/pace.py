"""Requests that are to be done in so many seconds: late ones are written with less effort, until they are late no more.

This is the only part of an engine that knows a clock, and only what it is handed. What it does follows from the clock's
readings and from nothing else, and it changes nothing but the numbers of requests that asked for it.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from unmask.base.canvas import Canvas
from unmask.base.errors import BadInput
from unmask.decode.decoder import Decoder
from unmask.decode.effort import Eased
from unmask.engine.crowd import Crowd
from unmask.engine.request import Request

Clock = Callable[[], float]
"""Seconds since whenever; never goes back."""

RECENT = 16
"""Steps whose median says how long a step takes."""


@dataclass(slots=True)
class Chase:
    """A request and its target.

    Args:
        began: when it was asked for.
        target_s: in how many seconds it is to be done.
        rungs: its decoder, and the same with less and less effort.

    Attributes:
        at: the rung it stands on.
        written, turns: tokens written and steps taken on each rung.
        seen: open positions and steps so far, at the last look; None before the first.
    """

    began: float
    target_s: float
    rungs: tuple[Decoder, ...]
    at: int = 0
    written: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    seen: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self.written, self.turns = [0] * len(self.rungs), [0] * len(self.rungs)

    def look(self, num_open: int, turn: int) -> None:
        """Count what was done since the last look on the rung it was done on."""
        if self.seen is not None:
            self.written[self.at] += self.seen[0] - num_open
            self.turns[self.at] += turn - self.seen[1]
        self.seen = num_open, turn

    def choose(self, now: float, step_s: float | None) -> None:
        """Stand on the highest rung that would be in time at the pace it has shown; one not tried yet is tried.

        Args:
            now: the time.
            step_s: seconds a step takes; None where that is not known.
        """
        assert self.seen is not None
        left_s, lowest = self.began + self.target_s - now, len(self.rungs) - 1
        if left_s <= 0 or step_s is None:
            self.at = lowest if left_s <= 0 else 0
            return
        for at, (written, turns) in enumerate(zip(self.written, self.turns, strict=True)):
            self.at = at
            if turns == 0 or self.seen[0] * turns * step_s <= left_s * written:
                return

    def told(self, now: float) -> Eased:
        """What became of it."""
        least = max((i for i, turns in enumerate(self.turns) if turns), default=0)
        decoder = self.rungs[least]
        assert decoder.effort is not None
        return Eased(
            target_s=self.target_s,
            took_s=now - self.began,
            steps=sum(self.turns[1:]),
            effort=decoder.effort,
            numbers=decoder.numbers if least else {},
        )


class Runner(Protocol):
    """A request that runs."""

    row: int
    crowd: Crowd
    chase: Chase | None


class Pace:
    """How long steps take, and who is late.

    Args:
        clock: None where requests can have no target.
    """

    def __init__(self, clock: Clock | None) -> None:
        self.clock = clock
        self._last: float | None = None
        self._steps_s: deque[float] = deque(maxlen=RECENT)

    def check(self, request: Request) -> None:
        """Refuse a target that can't be kept by anything that is done here.

        Raises:
            BadInput: a target that is no time, that nothing could be done for, or that nobody could check.
        """
        target = request.latency_s
        if target is None:
            return
        if isinstance(target, bool) or not isinstance(target, int | float) or not 0 < target < math.inf:
            raise BadInput(f"latency_s is a number of seconds above 0, not {target!r}")
        if request.decoder.effort is None:
            raise BadInput("latency_s has no effect on this decoder: it has no effort that could be less; leave it out")
        if self.clock is None:
            raise BadInput(
                "latency_s needs an engine with a clock; give it one (clock=time.monotonic), or leave it out"
            )

    def chase(self, request: Request, began: float | None = None) -> Chase | None:
        """What there is to keep of a request's target, which `check` let pass; None if it has none.

        `began` is when it was asked for; None is now.
        """
        if request.latency_s is None or self.clock is None:
            return None
        now = self.clock() if began is None else began
        return Chase(now, float(request.latency_s), (request.decoder, *request.decoder.easier))

    def tick(self, *, going_on: bool) -> None:
        """A step begins; whether the one before it, if any, has just ended, so that the time between was its own."""
        if self.clock is None:
            return
        now = self.clock()
        if going_on and self._last is not None:
            self._steps_s.append(now - self._last)
        self._last = now

    def ease(self, runners: Iterable[Runner], canvas: Canvas, own: Tensor) -> None:
        """Give those with a target the numbers with which they should be in time.

        Args:
            runners: who runs; those without a target are left alone.
            canvas: where their rows stand.
            own: (B,) positions of each row that are its own.
        """
        late = [(one, one.chase) for one in runners if one.chase is not None]
        if not late or self._last is None:
            return
        rows = torch.tensor([one.row for one, _ in late], device=own.device)
        places = torch.arange(canvas.tokens.shape[1], device=own.device)
        num_open = (canvas.open[rows] & (places < own[rows, None])).sum(1).tolist()
        step_s = statistics.median(self._steps_s) if self._steps_s else None
        for (one, chase), left, turn in zip(late, num_open, canvas.turn[rows].tolist(), strict=True):
            before = chase.at
            chase.look(left, turn)
            chase.choose(self._last, step_s)
            if chase.at != before:
                one.crowd.join(one.row, decoder := chase.rungs[chase.at])
                canvas.stride[one.row] = decoder.stride

    def told(self, chase: Chase, turn: int) -> Eased:
        """What became of a target whose request is done after so many steps."""
        assert self.clock is not None  # else there were none
        chase.look(0, turn)
        return chase.told(self.clock())
