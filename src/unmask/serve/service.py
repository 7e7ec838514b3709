"""What routes work with: from a request's body to a job of the worker, every limit checked, every error named."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from unmask.base.errors import UnmaskError
from unmask.lm.model import LanguageModel
from unmask.lm.results import Settings
from unmask.lm.rows import Ask
from unmask.lm.write import requests
from unmask.serve.errors import Refused, naming, refused
from unmask.serve.guard import json_bytes
from unmask.serve.job import Done, Job, Tells
from unmask.serve.limits import Limits
from unmask.serve.metrics import Metrics
from unmask.serve.schemas import REASONING, Asked, Writing
from unmask.serve.turns import Turns
from unmask.serve.worker import Worker

CONSTRAINTS = {"schema": "response_format"}
"""Settings of constrained decoding, and the fields that they come from."""


TOP: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
    "reasoning_effort": ("effort", REASONING.__getitem__),
    "t_max_predict_ms": ("latency_s", lambda ms: ms / 1000),
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
        name: what the model is called here; by default its own name.
        scoring: turns of the scores.
    """

    worker: Worker
    limits: Limits
    metrics: Metrics
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
        more: Settings | None = None,
        told: Tells | None = None,
    ) -> Job:
        """A job for what a body asks.

        Args:
            request: where it came in.
            body: what was asked.
            make: the rows of it; called in a thread of its own, as long texts and templates take their time.
            more: settings beside those of the body.
            told: what is told of it before its end; nothing by default.
        Raises:
            Refused: anything that can't be done, and why.
        """
        lm = self.check(body)
        settings = {**self.settings(body), **(more or {})}
        owner, id = request.state.owner, request.state.request_id
        asked = body.diffusion.deadline_s if body.diffusion is not None else None
        if asked is not None:
            self.limits.check("deadline_s", asked, "diffusion.deadline_s")
        deadline = time.monotonic() + (asked or self.limits.deadline_s)

        def prepare() -> tuple[Ask, list[Any]]:
            ask = make(lm)
            with naming_option(settings, body):
                rows = requests(lm.runner, ask, settings, share=owner)  # type: ignore[arg-type]
                self.worker.check(rows)
            self.limits.check_work(rows, settings)
            return ask, rows

        ask, rows = await asyncio.to_thread(prepare)
        job = Job(ask=ask, requests=rows, id=id, deadline=deadline, tells=told or Tells())
        self.worker.submit(job)
        return job

    def settings(self, body: Writing) -> dict[str, Any]:
        """Decoding settings of a body: those at its top (`TOP`), and the others in `diffusion`."""
        settings: dict[str, Any] = {"seed": body.seed or 0}
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
        waiting = asyncio.ensure_future(job.done())
        gone = asyncio.ensure_future(disconnected(request.receive))
        try:
            await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise Refused("client_gone", "whoever asked has gone")
            return waiting.result()
        finally:
            for task in (waiting, gone):
                task.cancel()
            self.worker.cancel(job)


async def disconnected(receive: Callable[[], Any]) -> None:
    """Return when whoever asked has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


@contextmanager
def naming_option(settings: dict[str, Any], body: Writing) -> Iterator[None]:
    """Errors inside are about a decoding setting; finds out which."""
    try:
        yield
    except UnmaskError as error:
        first, param = str(error).split("=")[0].split()[0], "diffusion"
        if first in CONSTRAINTS:
            param = CONSTRAINTS[first]
        elif first in settings:
            above = [top for top, (name, _) in TOP.items() if name == first and getattr(body, top, None) is not None]
            param = above[0] if above else f"diffusion.{first}"
        elif "decoder" in settings:
            param = "diffusion.decoder"
        raise refused(error, param) from error


def service(request: Request) -> Service:
    """The service of the application that a request came to."""
    found: Service = request.app.state.service
    return found


def counted(limits: Limits, lm: LanguageModel, texts: Sequence[str | Sequence[int]], param: str) -> int:
    """Tokens of all texts, within the limit; ids have to be in the vocabulary."""
    with naming(param):
        count = sum(len(lm.reader.ids(text)) for text in texts)
    limits.check("prompt_tokens", count, param)
    return count
