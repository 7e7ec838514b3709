"""What stands before replicas: an application that passes each request to one of them, and never ends in silence.

It has no routes. The guard around it checks keys, hosts, sizes and draining, as it does around a single server; the
application of `app.py` answers, in a replica. What a gateway adds: a request that was lost with its replica before
anything of it was told is asked once more elsewhere (the same request and seed give the same text), a stream of which
something was told ends with an error event. It knows no Ray: replicas are a `Fleet`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Protocol

from prometheus_client import Counter, Gauge, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import Response

from unmask.serve.affinity import beginning
from unmask.serve.errors import Refused
from unmask.serve.guard import Guard, Keys, Receive, Scope, Send, json_bytes, log, request_id
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics
from unmask.serve.service import Answer, disconnected

TRIES = 3
"""Replicas that a request is offered to."""
DEATHS = 2
"""Replicas that a request may be lost with: one that breaks whoever reads it must not end them all."""
TAKE_S = 30.0
"""For a replica to take a request."""
SILENCE_S = 60.0
"""In a stream; a replica that lives says something more often (`stream.PING_S`)."""
GRACE_S = 15.0
"""Behind the deadline, which replicas keep by themselves."""
ELSEWHERE = (429, 503)
"""Answers that another replica may not give."""
TAKEN = "unmask.taken"
"""Type of the first message of a replica: who it is."""
_TRAVELS = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "state")
_STAYS = {b"authorization", b"x-api-key", b"cookie"}
_OURS = {b"x-request-id", b"x-content-type-options"}
_FLEET_LOST = "the replica that wrote this was lost, and what it had begun with it; ask again"

Message = dict[str, Any]


class Lost(Exception):
    """A replica, or the way to it, has broken."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way to a replica: the part of its scope that can travel, and its whole body."""

    key: str
    scope: Mapping[str, Any]
    body: bytes
    attempt: int = 0


class Fleet(Protocol):
    """The replicas."""

    def ask(self, call: Call) -> AsyncGenerator[Message, None]:
        """Messages of a replica: `TAKEN`, then ASGI's; closing it lets the request go.

        Raises:
            Lost: the replica has broken.
            Refused: there is none, or none has a place.
        """
        ...

    async def metrics(self) -> dict[str, bytes]:
        """Of each replica, in Prometheus' text format."""
        ...


async def through(app: Any, call: Call) -> AsyncGenerator[Message, None]:
    """What an application sends for a call; in a replica. Closing it ends the application's work on it."""
    scope, sent = {**call.scope, "asgi": {"version": "3.0"}}, asyncio.Queue[Message | None]()
    whole = [{"type": "http.request", "body": call.body, "more_body": False}]

    async def receive() -> Message:
        if not whole:
            await asyncio.Event().wait()  # who has gone closes this generator
        return whole.pop()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "route": getattr(scope.get("route"), "path", None)}
        sent.put_nowait(message)

    request_id.set(call.scope["state"]["request_id"])
    task = asyncio.ensure_future(app(scope, receive, send))
    task.add_done_callback(lambda _: sent.put_nowait(None))
    try:
        while (message := await sent.get()) is not None:
            yield message
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a route failed", exc_info=error)
    finally:
        task.cancel()
        await asyncio.wait([task])


@dataclass(slots=True)
class Passage:
    """What a client has been sent of an answer. Its head waits for the first of its body."""

    send: Send
    head: Message | None = None
    sent: bool = False
    stream: bool = False
    number: int = 0
    ended: bool = False

    async def take(self, message: Message) -> None:
        """Pass one on."""
        if message["type"] == "http.response.start":
            headers = [(name, value) for name, value in message.get("headers", ()) if name not in _OURS]
            self.head = {**message, "headers": headers}
            self.stream = any(n == b"content-type" and v.startswith(b"text/event-stream") for n, v in headers)
            return
        if not self.sent:
            assert self.head is not None
            self.sent = True
            await self.send(self.head)
        self.number += message.get("body", b"").startswith(b"id: ")
        self.ended = not message.get("more_body", False)
        await self.send(message)

    async def fail(self, error: Refused) -> None:
        """End it with a word: an answer, if there was none yet, or an event of the stream.

        Raises:
            ConnectionError: half an answer was sent that can hold no error; the connection has to be cut.
        """
        if not self.sent:
            raise error
        if self.ended:
            return
        if not self.stream:
            raise ConnectionError(error.message)
        data = b"id: %d\ndata: %s\n\n" % (self.number, json_bytes(error.body))
        await self.send({"type": "http.response.body", "body": data, "more_body": True})
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})
        self.ended = True


class Gateway:
    """An ASGI application that is answered by a fleet.

    Args:
        fleet: the replicas.
        limits: of requests.
        metrics: of this process.

    Attributes:
        guard: around it; set by `create`.
    """

    guard: Guard

    def __init__(self, fleet: Fleet, limits: Limits, metrics: Metrics) -> None:
        self._fleet, self._limits, self._metrics = fleet, limits, metrics
        self._ends: dict[asyncio.Future[Refused], None] = {}
        registry = metrics.registry
        self._asked = Counter(
            "unmask_replica_requests", "requests by replica and end", ["replica", "end"], registry=registry
        )
        self._running = Gauge("unmask_replica_running", "requests at a replica", ["replica"], registry=registry)

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._ends)

    def cancel_all(self, why: Refused) -> None:
        """Tell all requests that they end now."""
        for end in [*self._ends]:
            if not end.done():
                end.set_result(why)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        asked = "GET" if scope["method"] == "HEAD" else scope["method"], scope["path"]
        if asked == ("GET", "/health"):  # of this process: it needs no restart if replicas do
            scope["route"] = SimpleNamespace(path="/health")
            await Answer({"status": "ok"})(scope, receive, send)
            return
        if asked == ("GET", "/metrics"):
            scope["route"] = SimpleNamespace(path="/metrics")
            text = together({"": self._metrics.text(), **await self._fleet.metrics()})
            await Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")(scope, receive, send)
            return
        if asked == ("GET", "/ready") and self.guard.draining:
            raise Refused("draining", "the server is shutting down")
        body = b"" if asked[0] == "GET" else (await receive()).get("body", b"")
        travels = {name: scope[name] for name in _TRAVELS if name in scope}
        travels["headers"] = [(name, value) for name, value in scope["headers"] if name not in _STAYS]
        await self._serve(Call(beginning(scope["state"]["owner"], body), travels, body), scope, receive, Passage(send))

    async def _serve(self, call: Call, scope: Scope, receive: Receive, passage: Passage) -> None:
        """Pass a request on until it ends, its time is up, who asked has gone, or all have to end."""
        end = asyncio.get_running_loop().create_future()
        self._ends[end] = None
        passing = asyncio.ensure_future(self._pass(call, scope, passage))
        gone = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait(
                (passing, gone, end),
                return_when=asyncio.FIRST_COMPLETED,
                timeout=self._limits.deadline_s + TAKE_S + GRACE_S,
            )
            if passage.ended:  # a client that has all of it may go; the replica's last word is still to be heard
                await asyncio.wait([passing], timeout=TAKE_S)
            if passing.done():
                passing.result()
                return
            passing.cancel()
            await asyncio.wait([passing])
            if gone.done() and not passage.sent:
                raise Refused("client_gone", "whoever asked has gone")
            if gone.done():
                return
            late = Refused("deadline_exceeded", "the request took longer than its deadline; ask for less")
            await passage.fail(end.result() if end.done() else late)
        finally:
            del self._ends[end]
            for task in (passing, gone):
                task.cancel()

    async def _pass(self, call: Call, scope: Scope, passage: Passage) -> None:
        """Offer a request to one replica after the other, until one answers."""
        deaths = 0
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            try:
                if await self._ask(replace(call, attempt=attempt), scope, passage, last=last):
                    return
            except Lost as error:
                deaths += 1
                log.warning("a replica was lost", extra={"attempt": attempt, "why": str(error)[:500]})
                if passage.sent or last or deaths >= DEATHS:
                    break
        await passage.fail(Refused("replica_lost", _FLEET_LOST))

    async def _ask(self, call: Call, scope: Scope, passage: Passage, *, last: bool) -> bool:
        """Pass on what one replica says; False if another one should be asked."""
        messages = self._fleet.ask(call)
        name, how = "none", "cancelled"
        async with aclosing(messages):
            try:
                taken = await _taken(messages)
                name = taken["replica"]
                self._running.labels(name).inc()
                async for message in _watched(messages, passage):
                    if message["type"] == "http.response.start":
                        scope["route"] = SimpleNamespace(path=message.pop("route") or "other")
                        if message["status"] in ELSEWHERE and not last:
                            how = "elsewhere"
                            return False
                    await passage.take(message)
                how = "answered"
            except (Lost, Refused) as error:
                how = "lost" if isinstance(error, Lost) else "refused"
                raise
            finally:
                self._asked.labels(name, how).inc()
                if name != "none":
                    self._running.labels(name).dec()
        if not passage.ended:
            await passage.fail(Refused("request_failed", "the server failed on this request; its log has more"))
        return True


async def _taken(messages: AsyncGenerator[Message, None]) -> Message:
    try:
        async with asyncio.timeout(TAKE_S):
            return await anext(messages)
    except TimeoutError:
        why = f"no replica had a place for the request within {TAKE_S:g} s; come again in a moment"
        raise Refused("queue_full", why) from None
    except StopAsyncIteration:
        raise Lost("a replica said nothing") from None


async def _watched(messages: AsyncGenerator[Message, None], passage: Passage) -> AsyncIterator[Message]:
    """All messages; in a stream none may be long in coming."""
    while True:
        try:
            async with asyncio.timeout(SILENCE_S if passage.stream else None):
                message = await anext(messages)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Lost(f"a replica said nothing for {SILENCE_S:g} s") from None
        yield message


@dataclass(slots=True)
class _Families:
    found: dict[str, Metric] = field(default_factory=dict)

    def collect(self) -> Iterator[Metric]:
        yield from self.found.values()


def together(texts: Mapping[str, bytes]) -> bytes:
    """Metrics of several processes as one text, with a label `replica`; none for the name ""."""
    families = _Families()
    for name, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            whole = families.found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            more = {"replica": name} if name else {}
            whole.samples += [sample._replace(labels={**sample.labels, **more}) for sample in family.samples]
    return generate_latest(families)


def create(fleet: Fleet, limits: Limits, metrics: Metrics, keys: Keys) -> tuple[Guard, Gateway]:
    """A gateway and the guard around it."""
    gateway = Gateway(fleet, limits, metrics)
    gateway.guard = Guard(gateway, keys, limits, metrics)
    return gateway.guard, gateway
