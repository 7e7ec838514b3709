"""POST /v1/score: estimates of -log p, one at a time, beside the engine."""

import asyncio
import copy
import threading
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from unmask.base.errors import TooLong, UnknownName
from unmask.lm import results
from unmask.objectives.likelihood import ESTIMATORS
from unmask.serve.errors import Refused, naming
from unmask.serve.schemas import Score
from unmask.serve.service import Answer, Service, counted, disconnected, service

router = APIRouter()

ORDERED = ("any-order", "left-to-right")
"""Estimators that take a forward per position."""


class Interruptible:
    """A network that stops where a forward would begin, once nobody waits for it."""

    def __init__(self, model: Any) -> None:
        self._model, self.unwanted = model, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def read(self, *given: Any, **named: Any) -> Any:
        """As the network's."""
        if self.unwanted.is_set():
            raise Refused("client_gone", "whoever asked has gone")
        return self._model.read(*given, **named)


@router.post("/v1/score")
async def score(body: Score, request: Request, service: Annotated[Service, Depends(service)]) -> Response:
    """Estimate -log p(text), or -log p(text | given)."""
    lm, limits = copy.copy(service.check(body)), service.limits
    if body.estimator is not None:
        with naming("estimator"):
            if body.estimator not in ESTIMATORS:
                raise UnknownName("estimator", body.estimator, ESTIMATORS)
    limits.check("samples", body.samples, "samples")
    lm.model = network = Interruptible(lm.model)  # type: ignore[assignment]

    def run() -> results.Score:
        size = counted(limits, lm, [body.text], "text")
        whole = size + counted(limits, lm, [body.given or ""], "given")
        limits.check("work", whole * body.samples * (size if body.estimator in ORDERED else 1), "samples")
        over = "given" if body.given and size <= lm.model.max_length else "text"
        with naming("text"), naming(over, TooLong):
            return lm.score(
                body.text,
                given=body.given,
                estimator=body.estimator,
                samples=body.samples,
                seed=body.seed or 0,
            )

    if service.scoring.waiting >= limits.queue:
        raise Refused("queue_full", "many scores wait already; come again in a moment")
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        async with asyncio.timeout(limits.deadline_s), service.scoring:
            found = asyncio.ensure_future(asyncio.to_thread(run))
            await asyncio.wait((found, gone), return_when=asyncio.FIRST_COMPLETED)
            network.unwanted.set()
            said = await found
    except TimeoutError:
        raise Refused("deadline_exceeded", "the request took longer than its deadline; ask for less") from None
    finally:
        network.unwanted.set()
        gone.cancel()
    return Answer(
        {
            "object": "score",
            "model": service.model,
            "nats": said.nats,
            "stderr": None if said.stderr != said.stderr else said.stderr,
            "bits_per_byte": said.bits_per_byte,
            "tokens": said.tokens,
            "forwards": said.forwards,
            "bound": said.bound,
            "usage": {"prompt_tokens": said.tokens, "total_tokens": said.tokens, "forwards": said.forwards},
        }
    )
