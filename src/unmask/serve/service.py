"""What routes work with: from a request's body to a job of the worker, every limit checked, every error named."""

import asyncio
import copy
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from unmask.base.canvas import Canvas
from unmask.base.errors import UnmaskError
from unmask.constrain.automata.vocabulary import Vocabulary
from unmask.engine.request import Request as EngineRequest
from unmask.lm.grow import grown
from unmask.lm.model import LanguageModel
from unmask.lm.rows import Ask
from unmask.lm.write import requests
from unmask.serve.compiling import Compiler, Ready
from unmask.serve.constraint import FREE, Bound
from unmask.serve.errors import Refused, naming, refused
from unmask.serve.guard import json_bytes
from unmask.serve.job import QUIET, Done, Job, Tells
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics
from unmask.serve.schemas import REASONING, Asked, Writing
from unmask.serve.turns import Turns
from unmask.serve.worker import Worker

T = TypeVar("T")
AHEAD = {"steps of a constrained text": "diffusion.lookahead", "a constrained text": "diffusion.decoder"}
"""How refusals to write a constrained text ahead of itself begin, and the fields that they are about."""
TOP: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "reasoning_effort": ("effort", REASONING.__getitem__),
    "t_max_predict_ms": ("latency_s", lambda ms: ms / 1000),
    "logit_bias": ("logit_bias", dict),
}
"""Decoding settings that other protocols have at the top of a body: what they and their values are with us."""


class Answer(Response):
    """A response of JSON."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """As bytes."""
        return json_bytes(content)


@dataclass(frozen=True, slots=True)
class Service:
    """All that routes share.

    Args:
        worker: owner of the engine.
        limits: of requests.
        metrics: of the server.
        compiler: of constraints.
        name: what the model is called here; by default its own name.
        scoring: turns of the scores.
    """

    worker: Worker
    limits: Limits
    metrics: Metrics
    compiler: Compiler
    name: str | None = None
    scoring: Turns = field(default_factory=Turns)

    @property
    def model(self) -> str:
        """What the model is called here."""
        return self.name or self.worker.lm.name

    def check(self, body: Asked) -> LanguageModel:
        """The model that a request is for.

        Raises:
            Refused: there is no such model here, or none yet.
        """
        lm = self.worker.lm
        if body.model is not None and body.model not in (self.model, lm.name):
            raise Refused(
                "model_not_found", f"no model called {body.model!r} is served here; there is {self.model!r}", "model"
            )
        return lm

    async def submit(
        self,
        request: Request,
        body: Writing,
        make: Callable[[LanguageModel], Ask],
        bound: Bound = FREE,
        told: Tells = QUIET,
    ) -> Job:
        """A job for what a body asks.

        Args:
            request: where it came in.
            body: what was asked.
            make: the rows of it; called in a thread of its own, as long texts and templates take their time.
            bound: what the texts have to be; it is compiled first, in a process that ends if whoever asked goes.
            told: what is told of it before its end; nothing by default.
        Raises:
            Refused: anything that can't be done, and why.
        """
        began = time.perf_counter()
        lm = self.check(body)
        settings = {**self.settings(body), "top_logprobs": told.top}
        owner, id = request.state.owner, request.state.request_id
        asked = body.diffusion.deadline_s if body.diffusion is not None else None
        if asked is not None:
            self.limits.check("deadline_s", asked, "diffusion.deadline_s")
        deadline = time.monotonic() + (asked or self.limits.deadline_s)
        if bound.asked:
            if getattr(body, "stop", None):
                raise Refused("invalid_value", f"a stop string would cut what {bound.param} asks for; give one", "stop")
            lm = copy.copy(lm)
            lm.controls = lm.controls.over(await unless_gone(request, self._automata(lm, bound, deadline)))
            settings |= bound.settings

        def prepare() -> tuple[Ask, list[EngineRequest], list[Canvas]]:
            ask = make(lm)
            with naming_option(settings, body, bound):
                ask = grown(lm.runner, ask, settings, lm.controls.fits(settings))  # type: ignore[arg-type]
            ask = bound.hold(lm, ask)
            with naming_option(settings, body, bound):
                rows = requests(lm.runner, ask, settings, share=owner)  # type: ignore[arg-type]
                canvases = self.worker.check(rows)
            self.limits.check_work(rows, settings)
            return ask, rows, canvases

        ask, rows, canvases = await asyncio.to_thread(prepare)
        job = Job(ask=ask, requests=rows, canvases=canvases, id=id, deadline=deadline, tells=told, began=began)
        self.worker.submit(job)
        return job

    async def _automata(self, lm: LanguageModel, bound: Bound, deadline: float) -> Ready:
        """All that is asked, compiled."""
        found = {}
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                with naming(bound.param):
                    vocabulary = await asyncio.to_thread(_vocabulary, lm)
                for name, asked in bound.asked.items():
                    with naming(bound.params[name]):
                        found[asked] = await self.compiler.get(asked, vocabulary)
        except TimeoutError:
            raise Refused("deadline_exceeded", f"compiling {bound.param} took longer than the deadline") from None
        return Ready(found)

    def settings(self, body: Writing) -> dict[str, Any]:
        """Decoding settings of a body: those at its top (`TOP`), and the others in `diffusion`."""
        settings: dict[str, Any] = {"seed": body.seed or 0}
        self.limits.check("biases", len(body.logit_bias or ()), "logit_bias")
        inner: dict[str, Any] = (
            body.diffusion.model_dump(exclude={"stream", "deadline_s"}) if body.diffusion is not None else {}
        )
        settings |= {name: value for name, value in inner.items() if value is not None}
        for top, (name, ours) in TOP.items():
            value = getattr(body, top, None)
            if value is not None and name in settings:
                raise Refused("invalid_value", f"{name} was given twice, here and in diffusion; give it once", top)
            if value is not None:
                settings[name] = ours(value)
        return settings

    async def finish(self, request: Request, job: Job) -> Done:
        """What became of a job; it is let go if whoever asked has gone.

        Raises:
            Refused: it failed.
        """
        try:
            return await unless_gone(request, job.done())
        finally:
            self.worker.cancel(job)


def _vocabulary(lm: LanguageModel) -> Vocabulary:
    """The bytes of all tokens, and their fingerprint, which take a moment the first time."""
    _ = lm.controls.vocabulary.fingerprint
    return lm.controls.vocabulary


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """What comes of some work; it is cancelled if whoever asked has gone.

    Raises:
        Refused: they have.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused("client_gone", "whoever asked has gone")
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()


async def disconnected(receive: Callable[[], Any]) -> None:
    """Return when whoever asked has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


@contextmanager
def naming_option(settings: dict[str, Any], body: Writing, bound: Bound) -> Iterator[None]:
    """Errors inside are about a decoding setting; finds out which."""
    try:
        yield
    except UnmaskError as error:
        first, param = str(error).split("=")[0].split()[0], "diffusion"
        ahead = [field for start, field in AHEAD.items() if str(error).startswith(start)]
        if ahead:
            param = ahead[0]
        elif bound.asked and str(error).startswith("the constraint"):
            param = bound.param
        elif first in settings:
            above = [top for top, (name, _) in TOP.items() if name == first and getattr(body, top, None) is not None]
            param = above[0] if above else f"diffusion.{first}"
        elif "decoder" in settings:
            param = "diffusion.decoder"
        raise refused(error, param) from error


async def service(request: Request) -> Service:
    """The service of the application that a request came to; a coroutine, as others are called in threads."""
    found: Service = request.app.state.service
    return found


def counted(limits: Limits, lm: LanguageModel, texts: Sequence[str | Sequence[int]], param: str) -> int:
    """Tokens of all texts, within the limit; ids have to be in the vocabulary."""
    with naming(param):
        count = sum(len(lm.reader.ids(text)) for text in texts)
    limits.check("prompt_tokens", count, param)
    return count
