"""What all writing routes do with a job: tell it as it goes on, or wait for it and answer."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from unmask.base.errors import TooLong, Unsupported
from unmask.lm.model import LanguageModel
from unmask.lm.results import Output
from unmask.lm.rows import Ask
from unmask.serve.constraint import FREE, Bound
from unmask.serve.errors import Refused, naming
from unmask.serve.job import Tells
from unmask.serve.schemas import Chat, Completion, Infill, Streaming, Writing
from unmask.serve.service import Answer, Service, counted
from unmask.serve.stream import Stream, Telling
from unmask.serve.tools import Calls
from unmask.serve.wire import Envelope, Form, of_output, usage
from unmask.text.layout import Fixed

DEFAULT_TOKENS = 128
"""Positions that are written where a request does not say how many."""


async def answer(
    service: Service,
    request: Request,
    body: Streaming,
    make: Callable[[LanguageModel], Ask],
    form: Form,
    *,
    bound: Bound = FREE,
    calls: Calls | None = None,
    top: int | None = None,
) -> Response:
    """Write a body's ask, as a stream or as a whole.

    Args:
        service, request, body: of the route.
        make: see `Service.submit`.
        form: what the answer looks like.
        bound: what the texts have to be.
        calls: how calls of tools stand in them.
        top: how many of the most probable tokens are told beside each, with its log-probability; None for neither.
    """
    drafts = bool(body.stream and body.diffusion is not None and body.diffusion.stream)
    if body.stream:
        _streams(service.check(body))
    told = Tells(text=bool(body.stream), drafts=drafts, logs=top is not None, top=top or 0)
    job = await service.submit(request, body, make, bound, told)
    envelope = Envelope(form, service.model)
    if body.stream:
        counts = body.stream_options is not None and bool(body.stream_options.include_usage)
        telling = Telling(job=job, service=service, envelope=envelope, logs=top is not None, top=top or 0)
        telling.counts, telling.calls = counts, calls
        return Stream(telling)
    done = await service.finish(request, job)
    tokenizer = service.worker.lm.tokenizer
    choices = [
        envelope.choice(
            index,
            str(output.completion) if tokenizer is not None else "",
            output.finish_reason,
            None if top is None else of_output(form, tokenizer, output, top),
        )
        for index, output in enumerate(done.outputs)
    ]
    if calls is not None:
        choices = [envelope.called(one, calls.message(one["message"]["content"])) for one in choices]
    if tokenizer is None:
        choices = [c | {"token_ids": o.tokens} for c, o in zip(choices, done.outputs, strict=True)]
    return Answer(envelope.around(choices, usage=usage(job.ask, done)))


async def texts(
    service: Service,
    request: Request,
    body: Writing,
    make: Callable[[LanguageModel], Ask],
    form: Form,
    shown: Callable[[int, Output], dict[str, Any]],
    *,
    bound: Bound = FREE,
) -> Response:
    """Write a body's ask and answer with choices that a route shows in its own way."""
    job = await service.submit(request, body, make, bound)
    done = await service.finish(request, job)
    envelope = Envelope(form, service.model)
    choices = [shown(index, output) for index, output in enumerate(done.outputs)]
    return Answer(envelope.around(choices, usage=usage(job.ask, done)))


def continued(
    service: Service,
    lm: LanguageModel,
    body: Chat | Completion,
    prompts: Sequence[Any],
    most: int | None,
    param: str,
    bound: Bound = FREE,
    count: str = "max_tokens",
) -> Ask:
    """Rows that continue prompts.

    Args:
        service, lm, body: of the request.
        prompts: texts, ids, or conversations that were read.
        most: positions to write, as asked for; otherwise as many as are usual and as there is room for.
        param, count: the fields of the prompts and of `most`.
        bound: what the texts have to be; one that can't be cut ends as that says, and not at the stop strings of chats.
    """
    chat = isinstance(body, Chat) and bound.cuttable
    given = counted(service.limits, lm, [p.ids if isinstance(p, Fixed) else p for p in prompts], param)
    long = _too_long(lm, given, most, param, count)
    most = most or max(1, min(DEFAULT_TOKENS, lm.model.max_length - given - len(lm.reader.start)))
    least = body.min_tokens
    if least is not None and least > most:
        raise Refused("invalid_value", f"min_tokens, {least}, is more than the {most} that are written", "min_tokens")
    stop, n, pins = stops(service, body), texts_of(service, body), pinned(service, body)
    with naming("stop"):
        lm.reader.strings(stop)
    with naming("pins"):
        lm.reader.pinned(pins, most)
    with naming(param), naming(long, TooLong):
        length = most if least is None else (least, most)
        return lm.ask(list(prompts), length=length, eos=body.eos, stop=stop, n=n, pins=pins, chat=chat)


def between(
    service: Service,
    lm: LanguageModel,
    body: Streaming,
    texts: tuple[str, str],
    most: int | None,
    params: tuple[str, str] = ("prompt", "suffix"),
    bound: Bound = FREE,
    count: str = "max_tokens",
) -> Ask:
    """Rows that write what stands between two texts, which are both seen.

    `params` are the fields they came in, `count` that of the `most` positions that are written.
    """
    given = sum(counted(service.limits, lm, [text], param) for text, param in zip(texts, params, strict=True))
    long = _too_long(lm, given, most, params[1], count)
    most = most or max(1, min(DEFAULT_TOKENS // 4, lm.model.max_length - given - len(lm.reader.start)))
    stop, n = stops(service, body), texts_of(service, body)
    with naming("stop"):
        lm.reader.strings(stop)
    with naming(params[1]), naming(long, TooLong):
        lm.reader.infill(*texts, (most, most))  # whether it can be seen and held at all
    with naming(bound.param):
        return lm.reader.infill(*texts, (1, most), n, stop, lm.controls.fits(bound.settings))


def stops(service: Service, body: Streaming) -> list[str]:
    """Stop strings of a body, within their limits."""
    given = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    service.limits.check("stops", len(given), "stop")
    service.limits.check("stop_characters", max(map(len, given), default=0), "stop")
    if any("\ud800" <= letter <= "\udfff" for one in given for letter in one):
        raise Refused("invalid_value", "a stop string holds half of a surrogate pair, which no text does", "stop")
    return given


def texts_of(service: Service, body: Streaming | Infill) -> int:
    """How many texts a body asks for per prompt, within the limit."""
    service.limits.check("n", body.n or 1, "n")
    return body.n or 1


def pinned(service: Service, body: Chat | Completion) -> dict[int, str]:
    """Pins of a body, by position."""
    pins = body.pins or {}
    service.limits.check("holes", len(pins), "pins")
    if wrong := [at for at in pins if not (at.isdecimal() and at.isascii() and len(at) < 10)]:
        raise Refused("invalid_value", f"a pin stands at a position, a number from 0, not {wrong[0][:20]!r}", "pins")
    return {int(at): text for at, text in pins.items()}


def _too_long(lm: LanguageModel, given: int, most: int | None, param: str, count: str) -> str:
    """The field to name if there are too many positions: who asks for more than there is room for may ask for less."""
    room = lm.model.max_length - given - len(lm.reader.start)
    return count if most is not None and (room > 0 or most >= lm.model.max_length) else param


def _streams(lm: LanguageModel) -> None:
    with naming("stream"):
        if lm.tokenizer is None:
            raise Unsupported("this model has no tokenizer, so there is no text to stream; ask for a whole answer")
        _ = lm.tokenizer.token_bytes  # refuses tokens that can't be spelled one by one
