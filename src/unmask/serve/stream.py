"""Server-sent events of a job: committed text that only grows, drafts beside it, errors told as such, an end always.

Every event has an order number (`id:`), counted from 0 without gaps. Drafts are chunks that add no text; their field
`diffusion` holds what has changed in the canvas since the draft before, and now and then all of it (`whole`), so that
who has missed some can go on from there. When a client reads slowly, drafts in between are left out before they are
numbered.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from unmask.decode.reading import Cell
from unmask.serve.errors import Refused
from unmask.serve.guard import json_bytes, log
from unmask.serve.job import Done, Draft, Job, Told
from unmask.serve.service import Service, disconnected
from unmask.serve.tools import Calls, Hearing
from unmask.serve.wire import Envelope, logprobs, usage

PING_S = 10.0
"""Silence after which a comment shows that the connection lives."""
GRACE_S = 10.0
"""Behind the deadline, for a client that reads slowly."""
WHOLE_EVERY = 32
"""Drafts of a choice from one that holds all of the canvas to the next."""
MASKED = ("", "masked")
_DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Choice:
    """What one choice has been told."""

    text: str = ""
    tokens: int = 0
    cells: list[tuple[str, str]] = field(default_factory=list)
    drafts: int = 0
    hearing: Hearing | None = None


@dataclass(slots=True, kw_only=True)
class Telling:
    """A job's events as chunks.

    Args:
        logs: whether log-probabilities are told; `top` of them beside each.
        counts: whether the last chunk tells what it cost.
        calls: how calls of tools stand in the texts.
    """

    job: Job
    service: Service
    envelope: Envelope
    logs: bool = False
    top: int = 0
    counts: bool = False
    calls: Calls | None = None
    told: dict[int, Choice] = field(default_factory=dict)
    number: int = 0

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """All chunks up to the last; raises Refused where the job ends badly."""
        if self.envelope.form.chat:
            for index in range(len(self.job.ask.texts)):
                first = self.envelope.choice(index, "", None, chunk=True)
                content = None if self.calls is not None and self.calls.must else ""
                yield self._chunk([{**first, "delta": {"role": "assistant", "content": content}}])
        async for event in self.job.events():
            if isinstance(event, Draft):
                yield self._draft(event)
            elif isinstance(event, Told):
                state = self._state(event.index)
                logs = self._logs(state, event.tokens, event.changes)
                for chunk in self._text(event.index, event.text, logs):
                    yield chunk
            else:
                for chunk in self._end(event):
                    yield chunk

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        blank = {"usage": None} if self.counts else {}
        return self.envelope.around(choices, chunk=True, **{**blank, **more})

    def _state(self, index: int) -> Choice:
        if index not in self.told:
            self.told[index] = Choice(hearing=None if self.calls is None else Hearing(self.calls))
        return self.told[index]

    def _text(self, index: int, text: str, logs: dict[str, Any] | None) -> list[dict[str, Any]]:
        """Chunks that tell so much more text of a choice."""
        state = self._state(index)
        state.text += text
        blank = self.envelope.choice(index, text if state.hearing is None else "", None, logs, chunk=True)
        if state.hearing is None:
            return [self._chunk([blank])]
        return self._deltas(blank, state.hearing.more(text))

    def _deltas(self, blank: dict[str, Any], deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Chunks of pieces; log-probabilities go with the first."""
        if not deltas and blank["logprobs"] is not None:
            deltas = [{}]
        return [
            self._chunk([{**blank, "delta": delta, "logprobs": None if i else blank["logprobs"]}])
            for i, delta in enumerate(deltas)
        ]

    def _logs(self, state: Choice, tokens: Any, changes: Any) -> dict[str, Any] | None:
        if not self.logs:
            return None
        tokenizer, form = self.service.worker.lm.tokenizer, self.envelope.form
        state.tokens += len(tokens)
        return logprobs(form, tokenizer, tokens, changes, self.top, len(state.text))

    def _draft(self, event: Draft) -> dict[str, Any]:
        state = self._state(event.index)
        cells = [_shown(cell) for cell in event.cells]
        whole = state.drafts % WHOLE_EVERY == 0
        before = [*([] if whole else state.cells), *[MASKED] * len(cells)]
        ops = [[at, *new] for at, (old, new) in enumerate(zip(before, cells, strict=False)) if old != new]
        state.cells, state.drafts = cells, state.drafts + 1
        told: dict[str, Any] = {"seq": self.number, "index": event.index, "forwards": event.forwards, "whole": whole}
        told |= {"size": len(cells), "ops": ops}
        return self._chunk([self.envelope.choice(event.index, "", None, chunk=True)], diffusion=told)

    def _end(self, done: Done) -> list[dict[str, Any]]:
        found = []
        for index, output in enumerate(done.outputs):
            state, finish = self._state(index), output.finish_reason
            rest = str(output.completion)[len(state.text) :]
            logs = self._logs(state, output.tokens[state.tokens :], output.changes[state.tokens :])
            if rest:
                found += self._text(index, rest, logs)
                logs = None
            last = self.envelope.choice(index, "", finish, logs, chunk=True)
            if (hearing := state.hearing) is not None:
                last["finish_reason"] = "tool_calls" if hearing.whole else finish
                found += self._deltas({**last, "finish_reason": None, "logprobs": None}, hearing.left())
            found.append(self._chunk([last]))
        if self.counts:
            found.append(self._chunk([], usage=usage(self.job.ask, done)))
        return found


class Whole(Response):
    """A stream of chunks that are all there."""

    media_type = "text/event-stream"

    def render(self, content: Sequence[dict[str, Any]]) -> bytes:
        """As events."""
        return b"".join(_event(number, json_bytes(chunk)) for number, chunk in enumerate(content)) + _DONE


class Stream(Response):
    """A response that tells a job as it goes on, and lets it go when whoever asked has gone."""

    media_type = "text/event-stream"

    def __init__(self, telling: Telling) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._telling = telling

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI calls it."""
        job, worker = self._telling.job, self._telling.service.worker
        left = job.deadline - time.monotonic() + GRACE_S
        tasks = [asyncio.ensure_future(self._write(send)), asyncio.ensure_future(disconnected(receive))]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=left)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            worker.cancel(job)

    async def _write(self, send: Send) -> None:
        chunks = self._telling.chunks()
        coming: asyncio.Future[dict[str, Any]] | None = None
        try:
            while True:
                coming = coming or asyncio.ensure_future(anext(chunks))
                done, _ = await asyncio.wait([coming], timeout=PING_S)
                if not done:
                    await _send(send, b": ping\n\n")
                    continue
                content, coming = coming.result(), None
                await self._event(send, json_bytes(content))
        except StopAsyncIteration:
            await _send(send, _DONE)
        except Refused as error:
            await self._event(send, json_bytes(error.body))
        except Exception as error:  # our own fault; a stream ends with a word in any case
            log.error("a stream failed", exc_info=error)
            await self._event(send, json_bytes(Refused("request_failed", "the server failed on this stream").body))
        finally:
            if coming is not None:
                coming.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _event(self, send: Send, data: bytes) -> None:
        number = self._telling.number
        self._telling.number += 1
        await _send(send, _event(number, data))


def _event(number: int, data: bytes) -> bytes:
    return b"id: %d\ndata: %s\n\n" % (number, data)


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


def _shown(cell: Cell) -> tuple[str, str]:
    return ("", cell.look) if cell.look in ("masked", "reopened") else (cell.text, cell.look)
