"""A request on its way: what was asked, and a mailbox from the worker's thread to whoever waits in a loop.

The mailbox can't overflow: committed text is bounded by what was asked for, and of drafts the newest stays. It knows
neither the engine nor HTTP.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from unmask.base.canvas import Canvas
from unmask.decode.reading import Cell, Filled
from unmask.decode.trace import Change
from unmask.engine.request import Request
from unmask.lm.results import Output
from unmask.lm.rows import Ask
from unmask.serve.errors import Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Committed text of one choice, behind what was told before.

    Args:
        tokens, changes: ids that are told now and what wrote them, where a job asks for them.
    """

    index: int
    text: str
    tokens: Sequence[int] = ()
    changes: Sequence[Change | None] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The last gap of one choice as it stands; it may still change."""

    index: int
    forwards: int
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """All texts of a job.

    Args:
        reused: positions of the prompts that other requests had read.
    """

    outputs: list[Output]
    reused: int


Event = Told | Draft | Done | Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Tells:
    """What is told of a job before its end.

    Args:
        text: committed text as it comes.
        drafts: the canvas as it stands.
        logs: what wrote each token, with the text.
        top: how many of the most probable tokens beside each, at its end too.
    """

    text: bool = False
    drafts: bool = False
    logs: bool = False
    top: int = 0


QUIET = Tells()
"""Nothing before its end."""


@dataclass(slots=True)
class Row:
    """What the worker knows of a row.

    Args:
        tokens, spelled: ids that are committed, and their bytes.
        told, num_told: text of it that was told, and how many tokens with it.
        result, reused: how it ended, and how many of its positions others had read.
    """

    tokens: list[int] = field(default_factory=list)
    spelled: bytes = b""
    told: str = ""
    num_told: int = 0
    result: Filled | None = None
    reused: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One HTTP request on its way.

    Args:
        ask, requests: what to write, and what the engine is asked for.
        canvases: of each request, as the engine's check has given them.
        id: for the log.
        deadline: `time.monotonic()` at which it is given up.
        tells: what is told of it before its end, where each text has one row and not several candidates.
    """

    ask: Ask
    requests: list[Request]
    canvases: list[Canvas]
    id: str
    deadline: float
    tells: Tells
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    began: float = field(default_factory=time.perf_counter)
    # of the worker's thread
    ids: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    started: bool = False
    # of the loop
    news: deque[Event] = field(default_factory=deque)
    sketches: dict[int, Draft] = field(default_factory=dict)
    awake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def single(self) -> bool:
        """Whether each text has one row, so that what is committed in it is the text's for good."""
        return len(self.ask.texts[0]) == 1

    @property
    def num_left(self) -> int:
        """Rows that have not ended, once it is in the engine."""
        return sum(row.result is None for row in self.rows)

    def put(self, event: Event) -> None:
        """Into the mailbox; of drafts the newest stays. In the loop's thread."""
        if isinstance(event, Draft):
            self.sketches[event.index] = event
        else:
            self.news.append(event)
        self.awake.set()

    async def events(self) -> AsyncIterator[Told | Draft | Done]:
        """What happens to it, up to its end.

        Raises:
            Refused: it ended otherwise, or not in time.
        """
        while True:
            try:
                async with asyncio.timeout(self.deadline - time.monotonic()):
                    await self.awake.wait()
            except TimeoutError:
                raise Refused("deadline_exceeded", "the request took longer than its deadline; ask for less") from None
            self.awake.clear()
            while self.news:
                event = self.news.popleft()
                if isinstance(event, Refused):
                    raise event
                yield event
                if isinstance(event, Done):
                    return
            while self.sketches:
                yield self.sketches.pop(next(iter(self.sketches)))

    async def done(self) -> Done:
        """Its end."""
        async for event in self.events():
            if isinstance(event, Done):
                return event
        raise AssertionError("events end with Done or an exception")
