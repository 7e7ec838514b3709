"""Replicas on Ray Serve: each is the application of `app.py` around an engine of its own, asked through a gateway.

Ray Serve starts them, watches them, starts lost ones anew and bounds what waits for them; where a request goes is
decided by `affinity.py`. Two ways to stand before them: `serve` listens in this process, and `build` is an application
for Ray Serve's own proxies, as a Kubernetes `RayService` wants it. Nothing else imports Ray.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray import serve as ray_serve
from ray.exceptions import RayError
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.request_router import RequestRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from unmask.base.errors import BadInput, RequestFailed
from unmask.lm.load import load as load_model
from unmask.lm.model import LanguageModel
from unmask.serve import app
from unmask.serve.affinity import order
from unmask.serve.errors import Refused
from unmask.serve.gateway import TAKEN, Call, Gateway, Lost, Message, create, through
from unmask.serve.guard import Guard, Keys
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics
from unmask.serve.run import Lines, listen
from unmask.serve.worker import Worker

log = logging.getLogger("unmask.serve")
NAME = "unmask"
"""Of the application in Ray Serve."""
STORE_BYTES = 256 << 20
"""That a Ray of our own has for messages in flight."""
METRICS_S = 2.0
"""For all replicas to tell their metrics; who does not is left out."""


class Replica:
    """An engine and the application around it, in a process of its own.

    Args:
        load: opens the model.
        limits: of requests.
        name: what the model is called; by default its own name.
    Raises:
        Exception: whatever `load` raises.
    """

    def __init__(self, load: Callable[[], LanguageModel], limits: Limits, name: str | None) -> None:
        handler = logging.StreamHandler()
        handler.setFormatter(Lines())
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO)
        self._metrics, self._id = Metrics(), ray_serve.get_replica_context().replica_id.unique_id
        self._worker = Worker(load, limits, self._metrics)
        self._app = app.create(self._worker, limits, self._metrics, name=name).app
        self._worker.start()
        while self._worker.state == "loading":  # it counts as there once it can write
            time.sleep(0.02)
        if self._worker.error is not None:
            raise self._worker.error

    async def ask(self, key: str, attempt: int, call: Call) -> AsyncGenerator[Message, None]:
        """Answer a call; the first two arguments are for the router."""
        yield {"type": TAKEN, "replica": self._id}
        async with aclosing(through(self._app, call)) as messages:
            async for message in messages:
                yield message

    async def metrics(self) -> tuple[str, bytes]:
        """Who it is, and its metrics."""
        return self._id, self._metrics.text()

    def check_health(self) -> None:
        """Asked by Ray Serve, which starts a replica anew if this raises."""
        if self._worker.state != "ready":
            raise RuntimeError(f"the engine is {self._worker.state}")


class Affine(RequestRouter):
    """Ray Serve's question where a request should go, answered by `affinity.order`."""

    def initialize_state(self, places: int) -> None:
        """Called with the deployment's settings: the requests that a replica runs at the same time."""
        self._places, self._loads = places, Counter[str]()

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Ranks of one replica each."""
        known = {str(one.replica_id.unique_id): one for one in candidate_replicas}
        key, attempt = pending_request.args[:2] if pending_request is not None else ("", 0)
        names = order(key, {name: self._loads[name] for name in known}, self._places, attempt)
        return [[known[name]] for name in names]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """A replica took one."""
        self._loads[replica_id.unique_id] += 1

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """It has ended, whichever way."""
        self._loads[replica_id.unique_id] -= 1
        if self._loads[replica_id.unique_id] <= 0:
            del self._loads[replica_id.unique_id]


class Handle:
    """A fleet behind a handle of Ray Serve."""

    def __init__(self, handle: Any) -> None:
        self._handle, self._ask = handle, handle.options(method_name="ask", stream=True)

    async def ask(self, call: Call) -> AsyncGenerator[Message, None]:
        """As `Fleet` has it."""
        coming = self._ask.remote(call.key, call.attempt, call)
        try:
            async for message in coming:
                yield message
        except BackPressureError as error:
            raise Refused("queue_full", "all replicas are busy and enough requests wait; come again") from error
        except (RayError, RayServeException) as error:
            raise Lost(f"{type(error).__name__}: {error}") from error
        finally:
            coming.cancel()

    async def metrics(self) -> dict[str, bytes]:
        """As `Fleet` has it."""
        try:
            told = await self._handle.broadcast("metrics").results_async(timeout_s=METRICS_S, return_exceptions=True)
        except TimeoutError:
            return {}
        return dict(one for one in told if isinstance(one, tuple))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is deployed.

    Args:
        load: opens the model, in each replica.
        replicas: how many.
        limits: of requests; `rows` and `queue` are those of each replica.
        name: what the model is called.
        gpus: of each replica.
    """

    load: Callable[[], LanguageModel]
    replicas: int
    limits: Limits
    name: str | None = None
    gpus: float = 0

    def bind(self) -> Any:
        """The deployment, to be run."""
        limits = self.limits
        deployment = ray_serve.deployment(
            Replica,
            name="Replica",
            num_replicas=self.replicas,
            max_ongoing_requests=limits.rows + limits.queue,
            max_queued_requests=max(1, limits.queue),
            graceful_shutdown_timeout_s=limits.drain_s,
            health_check_period_s=2,
            health_check_timeout_s=10,
            ray_actor_options={"num_cpus": 1, "num_gpus": self.gpus},
            request_router_config=RequestRouterConfig(
                request_router_class=Affine, request_router_kwargs={"places": limits.rows}
            ),
        )
        return deployment.bind(self.load, limits, self.name)


class Deployed:
    """Replicas that a process has started; an `Owner`, and a `Fleet` once they are there.

    Args:
        plan: what to deploy.
        address: of a Ray cluster; None starts one on this machine for as long as this lasts.
    """

    def __init__(self, plan: Plan, address: str | None) -> None:
        self.error: Exception | None = None
        self.gateway: Gateway | None = None
        self._plan, self._address, self._handle = plan, address, None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._deploy, name="deploy", daemon=True)

    def start(self) -> None:
        """Begin to deploy; called in a loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def _deploy(self) -> None:
        try:
            ray.init(**self._how(), namespace=NAME, log_to_driver=False)
            self._loop.call_soon_threadsafe(_own_signals)
            ray_serve.start(proxy_location="Disabled")
            plan, gpus = self._plan, ray.cluster_resources().get("GPU", 0)
            if plan.gpus > 0 and gpus < plan.gpus * plan.replicas:
                raise BadInput(f"{plan.replicas} replicas want a GPU each; the cluster has {gpus:g}. Give --device cpu")
            self._handle = Handle(ray_serve.run(plan.bind(), name=NAME, route_prefix=None))  # type: ignore[assignment]
            log.info("ready", extra={"replicas": plan.replicas})
        except Exception as error:  # told by who listens, which ends
            self.error = error if isinstance(error, BadInput) else RequestFailed(f"no replicas: {error}")
            log.critical("replicas can't be started", exc_info=error)
        self._ended.wait()  # a Ray of our own ends with the thread that has started it

    def _how(self) -> dict[str, Any]:
        """Where Ray is, or how it is started: with a place for each replica, and little memory for messages."""
        if self._address is not None:
            return {"address": self._address}
        num_cpus = max(os.cpu_count() or 1, self._plan.replicas)
        return {
            "address": "local",
            "num_cpus": num_cpus,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
        }

    @property
    def unloadable(self) -> bool:
        """Whether they can't be had."""
        return self.error is not None

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return self.gateway.num_open if self.gateway is not None else 0

    def cancel_all(self, why: Refused) -> None:
        """Tell all requests that they end now."""
        if self.gateway is not None:
            self.gateway.cancel_all(why)

    def stop(self, timeout_s: float) -> bool:
        """Take the replicas back, and end the cluster that was started for them."""
        if ray.is_initialized():
            if self._address is not None:
                ray_serve.delete(NAME)
            ray.shutdown()
        self._ended.set()
        return True

    async def ask(self, call: Call) -> AsyncGenerator[Message, None]:
        """As `Fleet` has it."""
        if self._handle is None:
            raise Refused("loading", "replicas are being started; come again in a moment")
        async with aclosing(self._handle.ask(call)) as messages:
            async for message in messages:
                yield message

    async def metrics(self) -> dict[str, bytes]:
        """As `Fleet` has it."""
        return {} if self._handle is None else await self._handle.metrics()


def _own_signals() -> None:
    """Python's handlers of signals again: Ray's abort the process three seconds after a SIGTERM, drained or not."""
    if threading.current_thread() is threading.main_thread():
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, signal.getsignal(sign))


def serve(plan: Plan, *, host: str, port: int, keys: Sequence[str] = (), address: str | None = None) -> None:
    """Serve replicas until a signal comes.

    Args:
        plan: what to deploy.
        host, port, keys: as of `run.serve`.
        address: of a Ray cluster; None starts one on this machine.
    Raises:
        BadInput, RequestFailed: as of `run.serve`; replicas that can't be had.
    """
    deployed = Deployed(plan, address)
    guard, deployed.gateway = create(deployed, plan.limits, Metrics(), Keys(keys))
    listen(guard, deployed, host, port, plan.limits.drain_s)


class Whole(Response):
    """An application's answer, as a response."""

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it; Ray Serve adds the request's id itself."""

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [(n, v) for n, v in message["headers"] if n != b"x-request-id"]}
            await send(message)

        await self._guard(scope, receive, named)  # type: ignore[arg-type]


class Front:
    """The gateway as a deployment, behind Ray Serve's own proxies."""

    def __init__(self, handle: Any, limits: Limits, keys: Sequence[str]) -> None:
        self._guard, _ = create(Handle(handle), limits, Metrics(), Keys(keys))

    async def __call__(self, request: Request) -> Response:
        """Answer; who reads the body is the guard."""
        return Whole(self._guard)


def build(given: Mapping[str, Any]) -> Any:
    """An application for `serve run unmask.serve.replicas:build` and a RayService's `import_path`.

    Args:
        given: model, replicas, name, device, quantize, backend, limits (a list of NAME=NUMBER), gpus; all may be
            left out. Keys come from UNMASK_API_KEYS.
    Raises:
        BadInput: an argument that is not known.
    """
    given = dict(given)
    how = {name: given.pop(name) for name in ("device", "quantize", "backend") if name in given}
    limits = Limits.of(given.pop("limits", []))
    model, name = given.pop("model", "tiny"), given.pop("name", None)
    replicas, gpus = given.pop("replicas", 1), given.pop("gpus", 0)
    if given:
        raise BadInput(f"no argument is called {next(iter(given))!r}; see unmask.serve.replicas.build")
    plan = Plan(load=partial(load_model, model, **how), replicas=replicas, limits=limits, name=name, gpus=gpus)
    keys = [key.strip() for key in os.environ.get("UNMASK_API_KEYS", "").split(",") if key.strip()]
    front = ray_serve.deployment(Front, name="Front", max_ongoing_requests=limits.requests)
    return front.bind(plan.bind(), limits, keys)
