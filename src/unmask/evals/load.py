"""How a server answers under load: requests arrive in one way or another, and what they heard becomes figures.

Whatever speaks OpenAI's protocol can be asked. A point is bounded in requests and in time. It knows no engine.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx2 as httpx

from unmask.base.errors import BadInput
from unmask.evals.asking import Heard, Server, ask, meet

SHARES = (0.5, 0.95, 0.99)
"""Of which percentiles are told."""

Send = Callable[[int, float], Awaitable[None]]
"""Ask for the text of a number that was due at a time of `time.perf_counter()`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much is asked at one point.

    Args:
        requests: at most.
        seconds: after which nothing new is asked; what is running is waited for.
    """

    requests: int = 64
    seconds: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One point, measured. Percentiles are in seconds: of 50, 95 and 99 %; None where there was nothing to measure.

    Args:
        arrival, level: a key of `ARRIVALS`, and how many at a time or how many a second.
        asked, done: requests that were sent, and that ended well; the figures are of these.
        errors: how many ended otherwise, by kind.
        seconds: from the first that was due to the last that ended.
        requests_per_s, tokens_per_s: of those that ended well.
        tokens: that were written.
        counted: "usage", as the server counts them, or "pieces" where it does not tell, of its stream.
        forwards, tokens_per_forward: of the network, where the server tells.
        first_s: until the first committed text, from when a request was due.
        gap_s: from one piece of committed text to the next; a diffusion model's pieces are blocks or parts of them.
        whole_s: until the end of a text.
        tokens_per_piece: tokens that a piece has on average.
    """

    arrival: str
    level: float
    asked: int
    done: int
    errors: dict[str, int]
    seconds: float
    requests_per_s: float
    tokens_per_s: float
    tokens: int
    counted: str
    forwards: int | None
    tokens_per_forward: float | None
    first_s: list[float] | None
    gap_s: list[float] | None
    whole_s: list[float] | None
    tokens_per_piece: float | None

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        return asdict(self)


async def closed(level: float, bounds: Bounds, send: Send) -> None:
    """So many clients, each of which asks again once it was answered."""
    numbers, until = iter(range(bounds.requests)), time.perf_counter() + bounds.seconds

    async def client() -> None:
        for number in numbers:
            await send(number, time.perf_counter())
            if time.perf_counter() > until:
                return

    await asyncio.gather(*(client() for _ in range(min(int(level), bounds.requests))))


async def poisson(level: float, bounds: Bounds, send: Send) -> None:
    """So many requests a second, each independent of all others and of whether the server keeps up."""
    coins, began = random.Random(0), time.perf_counter()
    due, running = began, []
    for number in range(bounds.requests):
        due += coins.expovariate(level)
        if due > began + bounds.seconds:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        running.append(asyncio.ensure_future(send(number, due)))
    await asyncio.gather(*running)


ARRIVALS = {"closed": closed, "poisson": poisson}
"""Ways in which requests arrive."""


def sweep(
    server: Server,
    points: Sequence[tuple[str, float]],
    prompts: Sequence[str],
    bounds: Bounds,
    *,
    key: str | None = None,
    watch: Callable[[Load], None] | None = None,
) -> tuple[Server, list[Load]]:
    """Measure points one after the other, behind one request that is not counted.

    Args:
        server: whom to ask; without a model's name, for the first that it has.
        points: ways of arrival (keys of `ARRIVALS`) and their levels.
        prompts: what is asked, in turn, each request with a seed of its own.
        bounds: of each point.
        key: of the server.
        watch: called after each point.
    Returns:
        The server as it turned out, and the points.
    Raises:
        BadInput: nothing to ask, or nobody is there.
        RequestFailed: the server does not answer even one request.
    """
    if not prompts or not points or min(level for _, level in points) <= 0:
        raise BadInput("a load needs a prompt, and numbers above 0 of clients or of requests a second")
    if bounds.requests < 1 or bounds.seconds <= 0 or server.timeout_s <= 0:
        raise BadInput(f"a point needs one request at least and some time, got {bounds}, timeout {server.timeout_s} s")
    return asyncio.run(_sweep(server, points, prompts, bounds, key=key, watch=watch))


async def _sweep(
    server: Server,
    points: Sequence[tuple[str, float]],
    prompts: Sequence[str],
    bounds: Bounds,
    *,
    key: str | None,
    watch: Callable[[Load], None] | None,
) -> tuple[Server, list[Load]]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    found = []
    async with httpx.AsyncClient(headers=headers, timeout=server.timeout_s, limits=limits) as client:
        server = await meet(client, server, prompts[0])
        for arrival, level in points:
            heard: list[Heard] = []

            async def send(number: int, due: float, heard: list[Heard] = heard) -> None:
                heard.append(await ask(client, server, prompts[number % len(prompts)], number, due))

            began = time.perf_counter()
            await ARRIVALS[arrival](level, bounds, send)
            found.append(summed(arrival, level, heard, time.perf_counter() - began))
            if watch is not None:
                watch(found[-1])
    return server, found


def summed(arrival: str, level: float, heard: Sequence[Heard], seconds: float) -> Load:
    """What requests heard, as figures."""
    well = [one for one in heard if one.error is None]
    tokens, pieces = sum(one.num_tokens for one in well), sum(len(one.pieces_s) for one in well)
    told = [one.forwards for one in well if one.forwards is not None]
    forwards = sum(told) if well and len(told) == len(well) else None
    gaps = [b - a for one in well for a, b in zip(one.pieces_s, one.pieces_s[1:], strict=False)]
    return Load(
        arrival=arrival,
        level=level,
        asked=len(heard),
        done=len(well),
        errors=dict(Counter(one.error for one in heard if one.error is not None).most_common()),
        seconds=seconds,
        requests_per_s=len(well) / seconds,
        tokens_per_s=tokens / seconds,
        tokens=tokens,
        counted="usage" if all(one.tokens is not None for one in well) else "pieces",
        forwards=forwards,
        tokens_per_forward=tokens / forwards if forwards else None,
        first_s=percentiles([one.pieces_s[0] for one in well if one.pieces_s]),
        gap_s=percentiles(gaps),
        whole_s=percentiles([one.end_s for one in well]),
        tokens_per_piece=tokens / pieces if pieces else None,
    )


def percentiles(values: Sequence[float]) -> list[float] | None:
    """The least values that are not below so much of them, for each of `SHARES`; None of nothing."""
    ordered = sorted(values)
    return [ordered[max(0, -int(-share * len(ordered) // 1) - 1)] for share in SHARES] if ordered else None
