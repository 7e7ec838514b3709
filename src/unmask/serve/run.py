"""The process: listen, write, and end as asked.

The first SIGTERM or SIGINT lets running requests end and refuses new ones, the second ends at once. Nothing is left on
disk, so whatever ends it, the next start finds nothing in its way.
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import uvicorn

from unmask.base.errors import BadInput, RequestFailed, UnmaskError
from unmask.lm.model import LanguageModel
from unmask.serve.app import create
from unmask.serve.errors import Refused
from unmask.serve.guard import Guard
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics
from unmask.serve.worker import Worker

log = logging.getLogger("unmask.serve")
WATCH_S = 0.05
"""How often it is looked whether the last request has ended, while the server drains."""
_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class Lines(logging.Formatter):
    """A log record as a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _PLAIN and value is not None}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Owner(Protocol):
    """Who writes: a worker in this process, or replicas in others."""

    error: Exception | None

    def start(self) -> None:
        """Begin to load."""
        ...

    @property
    def unloadable(self) -> bool:
        """Whether it failed before it could write."""
        ...

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        ...

    def cancel_all(self, why: Refused) -> None:
        """Tell all requests that they end now."""
        ...

    def stop(self, timeout_s: float) -> bool:
        """End; whether it has ended in time."""
        ...


class Server(uvicorn.Server):
    """uvicorn that drains before it closes its door.

    Args:
        config: of uvicorn.
        guard, worker: of the application.
        drain_s: that running requests have.
    """

    def __init__(self, config: uvicorn.Config, guard: Guard, worker: Owner, drain_s: float) -> None:
        super().__init__(config)
        self._guard, self._worker, self._drain_s = guard, worker, drain_s
        self._draining: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are ours for as long as the server runs; it ends by itself, with exit code 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, before = asyncio.get_running_loop(), {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        for sign in before:
            signal.signal(sign, lambda *_: loop.call_soon_threadsafe(self._asked))
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, say where, and load the model."""
        await super().startup(sockets)
        self._worker.start()
        for server in self.servers:
            for one in server.sockets:
                host, port = one.getsockname()[:2]
                log.info(
                    "listening", extra={"url": f"http://{f'[{host}]' if ':' in host else host}:{port}", "port": port}
                )

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; whether to end."""
        return await super().on_tick(counter) or self._worker.unloadable

    def _asked(self) -> None:
        """A signal came."""
        if self._draining is not None:
            log.warning("ending at once")
            _flush()
            os._exit(0)  # a forward may be running, and no thread can be told to leave it
        self._guard.draining = True
        log.info("draining", extra={"open": self._worker.num_open, "limit_s": self._drain_s})
        self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        until = time.monotonic() + self._drain_s
        while self._guard.num_running and time.monotonic() < until:
            await asyncio.sleep(WATCH_S)
        if self._guard.num_running:
            self._worker.cancel_all(Refused("draining", "the server is shutting down and its time is up"))
        self.should_exit = True


def serve(
    load: Callable[[], LanguageModel],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Sequence[str] = (),
    limits: Limits | None = None,
    name: str | None = None,
) -> None:
    """Serve a model until a signal comes.

    Args:
        load: opens the model.
        host, port: where to listen; port 0 takes a free one, which the log tells.
        keys: who may ask; needed where others than this machine can.
        limits: of requests.
        name: what the model is called; by default its own name.
    Raises:
        BadInput: an address that others can reach, and no keys. Whatever `load` raises.
        RequestFailed: the engine has failed.
    """
    limits = limits or Limits()
    metrics = Metrics()
    worker = Worker(load, limits, metrics)
    listen(create(worker, limits, metrics, keys=keys, name=name), worker, host, port, limits.drain_s)


def listen(guard: Guard, worker: Owner, host: str, port: int, drain_s: float) -> None:
    """Answer with a guarded application until a signal comes.

    Raises:
        BadInput, RequestFailed: as `serve` does.
    """
    if not guard.keys and not _is_loopback(host):
        raise BadInput(f"{host} can be reached by others; give --api-key, or listen on 127.0.0.1")
    config = uvicorn.Config(
        guard,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=1 << 16,
        lifespan="off",
        ws="none",
    )
    with _lines():
        try:
            Server(config, guard, worker, drain_s).run()
        except SystemExit as error:  # uvicorn's way to say that it can't listen
            raise BadInput(f"can't listen on {host}:{port}; is another server there?") from error
        ended = worker.stop(timeout_s=5.0)
        if worker.unloadable and worker.error is not None:
            raise worker.error if isinstance(worker.error, UnmaskError) else RequestFailed(str(worker.error))
        log.info("ended", extra={"in_time": ended})
        if not ended:
            _flush()
            os._exit(0)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _lines() -> Iterator[None]:
    """The log goes to standard error, as lines of JSON, while this lasts."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    levels = {logging.getLogger("unmask.serve"): logging.INFO, logging.getLogger("uvicorn"): logging.WARNING}
    before = {logger: (logger.handlers, logger.level, logger.propagate) for logger in levels}
    for logger, level in levels.items():
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in before.items():
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
