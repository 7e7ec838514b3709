"""What every request passes before a route sees it: an id, the door, the keys, the size of the body; and the log.

All of it is decided here, for all routes alike and for those that do not exist: a new route can't be forgotten. Paths
are taken as the router takes them, never from a URL that a Host header is part of.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextvars import ContextVar
from typing import Any

from unmask.base.errors import BadInput
from unmask.serve.errors import Refused
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics

log = logging.getLogger("unmask.serve")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that a line of the log is about."""
OPEN = {(method, path) for method in ("GET", "HEAD") for path in ("/health", "/ready")}
"""What is told without a key, as what asks for it (a kubelet, a load balancer) has none: a state, and nothing else."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)


def _identify(record: logging.LogRecord) -> bool:
    """Every line of the log says which request it is about, if it is about one."""
    if not hasattr(record, "request_id"):
        record.request_id = request_id.get() or None
    return True


log.addFilter(_identify)


def fresh_id() -> str:
    """Letters that are nobody else's. No secret, so it costs no system call, for which the engine would be waited."""
    return f"{random.getrandbits(96):024x}"


def json_bytes(content: Any) -> bytes:
    """JSON in ASCII: half a surrogate pair that a client sent must not make an answer impossible."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class Keys:
    """Who may ask. Only hashes are kept and compared, all of them, so that time tells nothing.

    Raises:
        BadInput: a key that can't be sent.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        if any(not key.strip() or not key.isascii() for key in keys):
            raise BadInput("an API key is plain text of one character or more")
        self._hashes = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def owner(self, headers: dict[bytes, bytes]) -> str | None:
        """A name for the key that came with a request; None for none of ours."""
        bearer = headers.get(b"authorization", b"")
        given = bearer[7:].strip() if bearer[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
        asked, found = hashlib.sha256(given).digest(), None
        for known in self._hashes:
            if hmac.compare_digest(known, asked):
                found = known.hex()[:16]
        return found


class Guard:
    """An ASGI application around another one.

    Args:
        app: what is guarded.
        keys: who may ask; nobody has to say who they are if there are none.
        limits: of bodies.
        metrics: told of every answer.

    Attributes:
        keys: who may ask.
        draining: whether new requests are refused.
        num_running: requests with a body that have not ended.
    """

    def __init__(self, app: Any, keys: Keys, limits: Limits, metrics: Metrics) -> None:
        self.app, self.keys, self.draining, self.num_running = app, keys, False, 0
        self._limits, self._metrics = limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        id = given if _ID.fullmatch(given) else fresh_id()
        request_id.set(id)
        began, status = time.perf_counter(), 0

        async def answer(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = [(b"x-request-id", id.encode()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        try:
            scope["state"] = {**scope.get("state", {}), "owner": self._enter(scope, headers), "request_id": id}
            if scope["method"] in ("GET", "HEAD"):
                await self.app(scope, receive, answer)
                return
            if self.num_running >= self._limits.requests:
                raise Refused("queue_full", "too many requests at the same time; come again in a moment")
            self.num_running += 1
            try:
                await self.app(scope, await self._body(scope, headers, receive), answer)
            finally:
                self.num_running -= 1
        except Refused as error:
            await _refuse(error, answer)
        except Exception as error:  # our own fault, told as such
            log.error("a route failed", exc_info=error)
            if not status:
                await _refuse(Refused("request_failed", "the server failed; its log has more, under the id"), answer)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            seconds = time.perf_counter() - began
            self._metrics.requests.labels(route, str(status or 499)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            log.info(
                "answered",
                extra={
                    "method": scope["method"][:16],
                    "route": route,
                    "status": status or 499,
                    "seconds": round(seconds, 4),
                },
            )

    def _enter(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        """The name of who asks; raises Refused for who may not."""
        host, origin = (headers.get(name, b"").decode("latin-1") for name in (b"host", b"origin"))
        if not self.keys and not _LOOPBACK.fullmatch(host):
            raise Refused("forbidden", "without keys this server answers to loopback names only (the Host header)")
        if origin and origin.partition("://")[2] != host:
            raise Refused("forbidden", "pages of other origins may not ask this server")
        who = self.keys.owner(headers) if self.keys else ""
        if who is None and (scope["method"], scope["path"]) not in OPEN:
            raise Refused("invalid_api_key", "this server wants a key: Authorization: Bearer KEY, or x-api-key: KEY")
        if self.draining and scope["method"] not in ("GET", "HEAD"):
            raise Refused("draining", "the server is shutting down; ask another one, or come again")
        return who or ""

    async def _body(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """The whole body, counted; what is received behind it comes through."""
        most = self._limits.body_bytes
        too_large = Refused("body_too_large", f"a body has at most {most} bytes; send less")
        said = headers.get(b"content-length", b"0")
        if not said.isdigit() or len(said) > 15 or int(said) > most:
            raise too_large
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json" and not kind.endswith(b"+json"):
            raise Refused("invalid_json", "a body is JSON; send it with content-type: application/json")
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._limits.body_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        break
                    parts.append(message.get("body", b""))
                    more = message.get("more_body", False)
                    if sum(map(len, parts)) > most:
                        raise too_large
        except TimeoutError:
            raise Refused("body_timeout", f"the body did not arrive within {self._limits.body_s:g} s") from None
        whole: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def again() -> MutableMapping[str, Any]:
            return whole.pop() if whole else await receive()

        return again


async def _refuse(error: Refused, send: Send) -> None:
    body = json_bytes(error.body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
