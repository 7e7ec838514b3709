"""One streamed request to whatever speaks OpenAI's protocol, with a clock beside it.

It sends fields that OpenAI's protocol has and those it is given, and reads what only some servers tell (forwards) where
it is told. It knows no engine and does not judge what is written.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2 as httpx

from unmask.base.errors import BadInput, RequestFailed

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
"""Ways of asking, and their routes behind the base URL."""
MOST_KIND = 80
"""Characters of the name of an error; what a server says is not ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Whom to ask, and how.

    Args:
        url: what stands before /chat/completions, `http://127.0.0.1:8000/v1`.
        model: as the server calls it.
        api: a key of `PATHS`.
        max_tokens: of a text.
        extra: further fields of every body.
        timeout_s: after which a request is given up.
        counts: whether the server is asked what a text cost (`stream_options`).
    """

    url: str
    model: str
    api: str = "chat"
    max_tokens: int = 64
    extra: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float = 120.0
    counts: bool = True

    def body(self, prompt: str, seed: int) -> dict[str, Any]:
        """Of a request."""
        asked = {"messages": [{"role": "user", "content": prompt}]} if self.api == "chat" else {"prompt": prompt}
        counts = {"stream_options": {"include_usage": True}} if self.counts else {}
        fixed = {"model": self.model, "max_tokens": self.max_tokens, "seed": seed, "stream": True}
        return {**asked, **fixed, **counts, **self.extra}


@dataclass(slots=True)
class Heard:
    """What became of a request. Times are seconds since it should have been sent.

    Args:
        pieces_s: when each piece of committed text came.
        end_s: when it was over.
        tokens, forwards: as the server counts them; None where it does not.
        error: what kind of error it ended with, in a word or two; None where it ended well.
    """

    pieces_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    tokens: int | None = None
    forwards: int | None = None
    error: str | None = None

    @property
    def num_tokens(self) -> int:
        """As the server counts them, else its pieces of text."""
        return len(self.pieces_s) if self.tokens is None else self.tokens


async def ask(client: httpx.AsyncClient, server: Server, prompt: str, seed: int, due: float) -> Heard:
    """Ask, and listen to the end; never raises what the server or the network does.

    Args:
        client: of the connections.
        server, prompt, seed: what is asked.
        due: `time.perf_counter()` when it should have been sent.
    """
    heard = Heard()
    try:
        async with asyncio.timeout(server.timeout_s):
            heard.error = await _listen(client, server, server.body(prompt, seed), heard, due)
    except TimeoutError:
        heard.error = "timeout"
    except httpx.TransportError as error:
        heard.error = type(error).__name__
    except (ValueError, TypeError, LookupError, AttributeError):
        heard.error = "not OpenAI's protocol"
    heard.end_s = time.perf_counter() - due
    return heard


async def meet(client: httpx.AsyncClient, server: Server, prompt: str) -> Server:
    """A server as it turned out: its model's name where none was given, and whether it tells what a text cost.

    Raises:
        BadInput: nobody is there.
        RequestFailed: it does not answer as OpenAI's protocol has it.
    """
    try:
        if not server.model:
            answer = await client.get(server.url + "/models")
            if answer.status_code != 200:
                raise RequestFailed(f"{server.url}/models answered {_refusal(answer)}; give a model, or a key it takes")
            server = replace(server, model=str(answer.json()["data"][0]["id"]))
    except httpx.TransportError as error:
        raise BadInput(f"can't reach {server.url} ({type(error).__name__}); is a server running there?") from error
    except (ValueError, TypeError, LookupError) as error:
        raise RequestFailed(f"{server.url}/models is not as OpenAI's protocol has it; give the model's name") from error
    for one in (server, replace(server, counts=False)):  # some servers refuse what they don't know
        heard = await ask(client, one, prompt, 0, time.perf_counter())
        if heard.error is None:
            return one
        if not heard.error.startswith(("400", "422")):
            break
    raise RequestFailed(f"{server.url} does not answer a streamed request: {heard.error}")


async def _listen(
    client: httpx.AsyncClient, server: Server, body: dict[str, Any], heard: Heard, due: float
) -> str | None:
    """Take down what is told; what kind of error it ended with."""
    ended = False
    async with client.stream("POST", server.url + PATHS[server.api], json=body) as answer:
        if answer.status_code != 200:
            await answer.aread()
            return _refusal(answer)
        async for chunk in _events(answer):
            if chunk is None:
                ended = True
                break
            if chunk.get("error"):
                return f"in the stream: {_code(chunk['error'])}"
            usage = chunk.get("usage") or {}
            heard.tokens = usage.get("completion_tokens", heard.tokens)
            heard.forwards = usage.get("forwards", heard.forwards)
            for choice in chunk.get("choices") or ():
                if choice.get("text") or (choice.get("delta") or {}).get("content"):
                    heard.pieces_s.append(time.perf_counter() - due)
                ended |= choice.get("finish_reason") is not None
    return None if ended else "cut off"


async def _events(answer: httpx.Response) -> AsyncIterator[dict[str, Any] | None]:
    """Contents of server-sent events; None for the word that ends them."""
    async for line in answer.aiter_lines():
        if line.startswith("data:"):
            data = line[5:].strip()
            yield None if data == "[DONE]" else json.loads(data)


def _refusal(answer: httpx.Response) -> str:
    """The status, and the code in the body if there is one."""
    try:
        code = _code(answer.json()["error"])
    except (ValueError, TypeError, LookupError):
        code = ""
    return f"{answer.status_code} {code}".strip()


def _code(error: Any) -> str:
    named = error.get("code") or error.get("type") if isinstance(error, dict) else None
    return str(named or "error")[:MOST_KIND]
