"""What HTTP costs beside the engine alone: plain requests and streams, in time and in processor time.

The same requests with the same seeds, by so many clients at a time, each of which asks again once it was answered: to
an engine in this process, to a server in a process of its own as plain requests, and as streams. The three take turns
(a lone client's turn is one request), and what is told are medians over the turns of what HTTP adds to the engine's
time in the same turn, with the interval in which the median lies at 95 %: from order statistics, no distribution
assumed. That all do the same work is checked: their requests take equally many forwards.

What is measured is all that stands between a client and the engine: HTTP, JSON, checks, tokenizing, threads, and the
way back. Clients are bare sockets of this process, so a client library's own time is no part of it; what they do while
the server works does take a core from it. Processor time is that of the server's process, the engine's that of this
one.

    python benchmarks/serve_cost.py --out benchmarks/results/serve_cost
    python benchmarks/serve_cost.py --model llada --option decoder=llada steps=4 --tokens 32 --requests 16
"""

import asyncio
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import networks
import report
import torch

import unmask
from unmask.engine.engine import Engine
from unmask.engine.request import Request
from unmask.lm.model import LanguageModel
from unmask.lm.write import requests
from unmask.serve.limits import Limits
from unmask.serve.run import serve

PROMPTS = ["def main(", "import os\n", "class Foo:\n", "It was a fine morning, and "]
AIM = 0.05
"""Share that HTTP should not cost more than."""
LEAST_TURNS = 9
"""As an interval of the median needs some."""
Body = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One turn of one side.

    Args:
        first_s, whole_s: medians of the times to the first committed text and to the end of a text.
        seconds, cpu_s: of the turn, and processor time.
        forwards: of the network, of all requests.
    """

    first_s: float
    whole_s: float
    seconds: float
    cpu_s: float
    forwards: int


def alone(lm: LanguageModel, asked: Sequence[Request], clients: int) -> Run:
    """The requests through an engine in this thread."""
    engine = Engine(lm.runner, rows=Limits().rows, tokenizer=lm.tokenizer)
    waiting, began, firsts, wholes = iter(asked), {}, {}, []
    forwards = 0
    start, cpu = time.perf_counter(), time.process_time()

    def ask(request: Request) -> None:
        now = time.perf_counter()
        began[engine.add(request)] = now

    for request in [next(waiting) for _ in range(min(clients, len(asked)))]:
        ask(request)
    while engine.busy:
        for delta in engine.step():
            assert delta.error is None, delta.error
            if delta.tokens and delta.id not in firsts:
                firsts[delta.id] = time.perf_counter() - began[delta.id]
            if delta.result is not None:
                wholes.append(time.perf_counter() - began[delta.id])
                forwards += delta.result.forwards
                if (request := next(waiting, None)) is not None:
                    ask(request)
    seconds = time.perf_counter() - start
    return Run(
        statistics.median(firsts.values()), statistics.median(wholes), seconds, time.process_time() - cpu, forwards
    )


@dataclass(frozen=True)
class Crowd:
    """Clients of one server, each with a connection of its own for a turn; bare ones, so that time is the server's.

    Args:
        url, pid: of the server.
        body: of every request, but its prompt and seed.
    """

    url: str
    pid: int
    body: Body

    async def ask(self, seeds: Sequence[int], clients: int, *, stream: bool) -> Run:
        """The requests of these seeds."""
        told, left = [], iter(seeds)
        host, port = urlsplit(self.url).hostname, urlsplit(self.url).port
        clock = (~self.pid << 3) | 2  # Linux: the processor clock of another process
        pipes = [await asyncio.open_connection(host, port) for _ in range(clients)]

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for seed in left:
                body = {**self.body, "prompt": PROMPTS[seed % len(PROMPTS)], "seed": seed, "stream": stream}
                body |= {"stream_options": {"include_usage": True}} if stream else {}
                data, began = json.dumps(body).encode(), time.perf_counter()
                head = "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
                first, forwards = await (_streamed if stream else _whole)(reader)
                now = time.perf_counter()
                told.append(((first or now) - began, now - began, forwards))

        start, cpu = time.perf_counter(), time.clock_gettime_ns(clock)
        await asyncio.gather(*(one(*pipe) for pipe in pipes))
        seconds, cpu_s = time.perf_counter() - start, (time.clock_gettime_ns(clock) - cpu) / 1e9
        for _, writer in pipes:
            writer.close()
        firsts, wholes, forwards = zip(*told, strict=True)
        return Run(statistics.median(firsts), statistics.median(wholes), seconds, cpu_s, sum(forwards))


async def _whole(reader: asyncio.StreamReader) -> tuple[float, int]:
    """When an answer came, and its forwards."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    answer = json.loads(await reader.readexactly(int(size)))
    assert "usage" in answer, answer
    return 0.0, answer["usage"]["forwards"]


async def _streamed(reader: asyncio.StreamReader) -> tuple[float, int]:
    """When the first text of a stream came, and its forwards."""
    await reader.readuntil(b"\r\n\r\n")
    first, forwards = 0.0, 0
    while length := int(await reader.readline(), 16):
        event = (await reader.readexactly(length + 2)).partition(b"data: ")[2]
        if event.startswith(b"{"):
            chunk = json.loads(event)
            assert "error" not in chunk, chunk
            if not first and chunk["choices"] and chunk["choices"][0]["text"]:
                first = time.perf_counter()
            forwards = (chunk["usage"] or {}).get("forwards", forwards)
    await reader.readline()
    return first, forwards


def opened(name: str) -> LanguageModel:
    """A model by its name, or a network with random weights (`networks.py`), which spells its ids as bytes and runs."""
    if name == "tiny" or name not in networks.NETWORKS:
        return unmask.load(name)
    model = networks.NETWORKS[name]()
    return LanguageModel(model, networks.spelling(model.vocab), name=name)


@contextmanager
def serving(model: str, threads: int) -> Iterator[tuple[str, int]]:
    """A server of a model, by its URL and process."""
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, __file__, "--model", model, "--threads", str(threads), "--serve"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        url = ""
        for line in process.stderr:
            said: dict[str, Any] = json.loads(line) if line.startswith("{") else {"message": line}
            url = said.get("url", url)
            if said["message"] == "ready":
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # its log must not fill the pipe
        try:
            yield url, process.pid
        finally:
            process.terminate()


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies with 95 %: between two of the values, the k-th from below and from above."""
    ordered, n, tail, k = sorted(values), len(values), 0.0, 0
    while 2 * (tail := tail + math.comb(n, k) / 2**n) <= AIM and k < n // 2:
        k += 1
    return ordered[max(0, k - 1)], ordered[n - max(1, k)]


def compared(name: str, clients: int, pairs: Sequence[tuple[Run, Run]], size: int) -> dict[str, Any]:
    """A line of the table: what a side adds to the engine, pair by pair."""

    def added(of: Callable[[Run], float]) -> tuple[list[float], list[float]]:
        values = [(of(engine), of(http)) for engine, http in pairs]
        return [1000 * (h - e) for e, h in values], [h / e - 1 for e, h in values]

    first = [pair.first_s for pair, _ in pairs] if name == "stream" else [pair.whole_s for pair, _ in pairs]
    wait_ms, wait = added((lambda run: run.first_s) if name == "stream" else (lambda run: run.whole_s))
    _, rate = added(lambda run: run.seconds)
    cpu_ms, _ = added(lambda run: run.cpu_s / size)
    shares = [_share(wait), _share(rate)]
    return {
        "clients": clients,
        "asked": name,
        "engine ms": 1000 * statistics.median(first),
        "HTTP adds ms": _with_interval(wait_ms, "{:.2f}"),
        "share": shares[0],
        "share of time in all": shares[1],
        "engine, CPU ms a request": 1000 * statistics.median(engine.cpu_s for engine, _ in pairs) / size,
        "HTTP adds, CPU ms": _with_interval(cpu_ms, "{:.2f}"),
        "aim": _verdict(interval(wait), interval(rate)),
    }


def _verdict(*intervals: tuple[float, float]) -> str:
    """Whether the aim is kept, where the intervals tell."""
    if all(high < AIM for _, high in intervals):
        return "holds"
    return "missed" if any(low >= AIM for low, _ in intervals) else "not told"


def _with_interval(values: Sequence[float], form: str) -> str:
    low, high = interval(values)
    return f"{form.format(statistics.median(values))} ({form.format(low)} to {form.format(high)})"


def _share(values: Sequence[float]) -> str:
    return _with_interval(values, "{:+.1%}")


async def measure(
    lm: LanguageModel, crowd: Crowd, asked: Sequence[Request], levels: Sequence[int], num: int
) -> list[dict[str, Any]]:
    """All lines of the table; a turn has two requests for each client, or the one of a lone client."""
    rows = []
    for clients in levels:
        size = clients if clients == 1 else 2 * clients
        pairs: dict[str, list[tuple[Run, Run]]] = {"plain": [], "stream": []}
        for turn in range(-1, max(LEAST_TURNS, num // size)):
            seeds = [(turn * size + i) % len(asked) for i in range(size)]
            engine = alone(lm, [asked[seed] for seed in seeds], clients)
            order = list(pairs) if turn % 2 else list(pairs)[::-1]
            for name in order:
                http = await crowd.ask(seeds, clients, stream=name == "stream")
                assert engine.forwards == http.forwards, "the two did not do the same work"
                if turn >= 0:  # the one before is a warm-up
                    pairs[name].append((engine, http))
        rows += [compared(name, clients, those, size) for name, those in pairs.items()]
        print(*rows[-2:], sep="\n", file=sys.stderr)
    return rows


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--model", default="tiny", help="a model, or a network of networks.py with random weights")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64, help=f"of each side, but {LEAST_TURNS} turns at least")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--option", nargs="*", default=[], help="decoding options, NAME=VALUE")
    parser.add_argument("--serve", action="store_true", help="serve the model on a free port, and nothing else")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.serve:
        serve(lambda: opened(given.model), port=0)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends as well
    options = {name: _value(value) for name, _, value in (one.partition("=") for one in given.option)}
    lm = opened(given.model)
    asked: list[Request] = []
    for seed in range(max(given.requests, 2 * max(given.clients))):
        ask = lm.ask([PROMPTS[seed % len(PROMPTS)]], length=given.tokens, eos="forbid")
        asked += requests(lm.runner, ask, {"seed": seed, **options})  # type: ignore[typeddict-item]
    body: Body = {"max_tokens": given.tokens, "eos": "forbid", **({"diffusion": options} if options else {})}
    with serving(given.model, given.threads) as (url, pid):
        rows = asyncio.run(measure(lm, Crowd(url, pid, body), asked, given.clients, given.requests))
    title = f"HTTP beside the engine alone, {given.tokens} tokens a request"
    about = {"model": report.described(given.model, lm), "options": options or "the model's own"}
    caption = "Medians over turns, with 95 % intervals; plain: to the answer, stream: to the first committed text"
    report.report(given.out and Path(given.out), title, {caption: rows}, **about)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
